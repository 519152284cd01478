"""Learning rates as pure functions of the step (facts of the recipes: arXiv:2106.08254, app. G).

Departure: the reference's list of W warm-up rates ends with the peak, which its cosine's list
begins with again; here the peak comes once.
"""

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def warmup_cosine(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, minimum: float
) -> float:
    """The rate of one optimiser step: linear from 0 to the peak, then half a cosine to the minimum.

    Args:
        step: Optimiser steps already done, from 0.
        total_steps: Length of the run; the minimum would be reached at this step.
        warmup_steps: Steps of the linear part; the peak is reached at this step.
        peak: The highest rate.
        minimum: The rate at the end, and of any step after it.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = _share_done(step, total_steps, warmup_steps)
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * done))


def warmup_linear(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, minimum: float
) -> float:
    """As `warmup_cosine`, but falling in a straight line: the reference's for segmentation.

    It calls this a polynomial of power 1.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return minimum + (peak - minimum) * (1.0 - _share_done(step, total_steps, warmup_steps))


def warmup_constant(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, minimum: float
) -> float:
    """As `warmup_cosine`, but staying at the peak; the minimum is not reached."""
    del total_steps, minimum
    return peak * min(1.0, step / warmup_steps) if warmup_steps else peak


def _share_done(step: int, total_steps: int, warmup_steps: int) -> float:
    length = total_steps - warmup_steps
    return 1.0 if length <= 0 else min(1.0, (step - warmup_steps) / length)


SCHEDULES: dict[Schedule, Callable[..., float]] = {
    "cosine": warmup_cosine,
    "linear": warmup_linear,
    "constant": warmup_constant,
}
