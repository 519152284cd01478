"""What the benchmarks measure with."""

import sys
from pathlib import Path

import pytest
import torch

from engine.imagined_cuda import imagined_cuda

BENCHMARKS = str(Path(__file__).resolve().parents[1] / "benchmarks")
if BENCHMARKS not in sys.path:  # scripts, not a package
    sys.path.append(BENCHMARKS)

import harness  # noqa: E402  # it can only be found from here on
import setting  # noqa: E402


@pytest.mark.parametrize(("device", "sides"), [("cpu", 2048), ("cuda", 8192)])
def test_the_peak_is_that_of_large_matrices(
    device: str, sides: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Drawn(Exception):
        pass

    def draw(*size: int, device: torch.device) -> None:
        raise Drawn(size)

    monkeypatch.setattr(torch, "randn", draw)
    with pytest.raises(Drawn) as found:
        harness.matrix_peak(torch.device(device), torch.float32)
    assert found.value.args[0] == (sides, sides)


@pytest.mark.parametrize(
    ("words", "precision", "name"),
    [
        ("--device cpu", "bfloat16", "cpu"),
        ("--device cpu --batch 24", "bfloat16", "cpu-24"),
        ("--device cpu", "float32", "cpu-float32"),
        ("--device cuda", "bfloat16", "cuda"),
        ("--device cuda --batch 256 --eager", "bfloat16", "cuda-eager"),
        ("--device cuda --sizes large --batch 64", "bfloat16", "cuda-large-64"),
        ("--device cuda --pixels 384", "bfloat16", "cuda-384px"),
    ],
)
def test_what_is_not_as_usual_has_a_record_of_its_own(
    words: str, precision: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of another size, batch or way would else replace what the documents are made from."""
    monkeypatch.setattr(setting, "choose_device", torch.device)
    monkeypatch.setattr(setting, "choose_precision", lambda *given: precision)
    monkeypatch.setattr(setting, "is_hopper", lambda device: False)
    options = setting.with_settings("imagined").parse_args(words.split())
    assert [found.where for found in setting.settings_of(options)] == [name]


@pytest.mark.parametrize(
    ("hopper", "why", "words", "refused"),
    [
        (True, "", "", False),
        (True, "results are 2.0 apart", "", True),
        (True, "results are 2.0 apart", "--any-attention", False),
        (False, "the card is no Hopper", "", False),
    ],
)
def test_a_hopper_without_our_kernels_is_not_timed_unless_told(
    hopper: bool, why: str, words: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setting, "choose_device", torch.device)
    monkeypatch.setattr(setting, "choose_precision", lambda *given: "bfloat16")
    monkeypatch.setattr(setting, "is_hopper", lambda device: hopper)
    monkeypatch.setattr(setting, "why_not_for", lambda projected: why)
    options = setting.with_settings("imagined").parse_args(["--device", "cuda", *words.split()])
    with imagined_cuda(monkeypatch):
        if refused:
            with pytest.raises(SystemExit, match=r"base .*2\.0 apart.*--any-attention"):
                setting.settings_of(options)
        else:
            (found,) = setting.settings_of(options)
            assert why in found.attention and (found.attention == "our kernels") is not bool(why)
