"""What the benchmarks measure with."""

import sys
from pathlib import Path

import pytest
import torch

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
    options = setting.with_settings("imagined").parse_args(words.split())
    assert [found.where for found in setting.settings_of(options)] == [name]
