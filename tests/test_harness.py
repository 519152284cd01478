"""What the benchmarks measure with."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).resolve().parents[1] / "benchmarks")
if BENCHMARKS not in sys.path:  # scripts, not a package
    sys.path.append(BENCHMARKS)

import harness  # noqa: E402  # it can only be found from here on


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
