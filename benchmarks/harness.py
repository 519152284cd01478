"""How everything here is timed: in turns, in one process, after equal outputs were asserted.

Machines are shared and clocks wander, so a time alone says little. Rivals take turns, and what is
told is the median and the quartiles of their ratios, pair by pair; times stand beside them.
"""

import gc
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from beit.commands.planning import calibration
from beit.commands.planning.calibration import Call, matrix_rate, synchronise
from provenance import provenance

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
_PEAK_ON_CPU = 2048  # sides of the matrices whose product is called the peak


def interleaved(
    sides: Mapping[str, Call],
    *,
    rounds: int,
    warm_ups: int = 1,
    settle: int = 0,
    device: torch.device = CPU,
) -> dict[str, list[float]]:
    """Seconds of each side's calls, one timed call of each in every round.

    Every second round runs backwards, so that no side always comes after the same neighbour.

    Args:
        sides: What is compared, by name. The sides' outputs must have been found equal before.
        rounds: Timed rounds.
        warm_ups: Rounds before them, which also compile what is compiled.
        settle: Calls of a side before each timed one: after a change of sides the allocator and the
            caches are the other side's, which a training run never sees.
        device: Synchronised inside the timed region.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(-warm_ups, rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            for _ in range(settle):
                sides[name]()
            taken = timed(sides[name], device)
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def timed(call: Call, device: torch.device = CPU) -> float:
    """Seconds of a call, what it left the device to do included; garbage is collected before."""
    gc.collect()
    return calibration.timed(call, device)


def times_faster(slower: list[float], faster: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratio of paired times: above 1 when the second is faster.

    `fastest` is the ratio of the shortest times, which what others do on the machine lengthens
    least.
    """
    ratios = [theirs / ours for theirs, ours in zip(slower, faster, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "median": round(statistics.median(ratios), 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "fastest": round(min(slower) / min(faster), 3),
    }


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that a share of the peak is a share of.

    A GPU needs larger matrices than a CPU to reach what it can: those that planning measures with.
    """
    return matrix_rate(device, dtype, 10, _PEAK_ON_CPU if device.type == "cpu" else None)


class Memory(NamedTuple):
    """Bytes on a CUDA device; None on a CPU."""

    before: int | None = None  # what was there already, of other sides and of this one's state
    peak: int | None = None


def memory_of(call: Call, device: torch.device) -> Memory:
    """What a call takes when it is not the first, which also compiles and makes what stays."""
    call()
    if device.type != "cuda":
        return Memory()
    synchronise(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronise(device)
    return Memory(before, torch.cuda.max_memory_allocated(device))


def give_memory_back(device: torch.device) -> None:
    """Let go of what nothing holds any more, for allocations of other sizes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def record(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS, **more: Any) -> Path:
    """Write `name`.json: rows with command, commit, day, machine and versions."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.json"
    target.write_text(json.dumps({**provenance(), **more, "rows": rows}, indent=1) + "\n")
    return target
