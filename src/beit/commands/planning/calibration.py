"""How fast this machine makes the steps of a recipe: some real ones, timed.

What is timed is the engine's own step on random pictures, with freshly drawn weights: forward,
backward, clipping, AdamW, at two sizes of batch. A straight line through both gives what a step and
what a picture costs. A model too large for the time at hand is timed with 2 and with 4 blocks, and
the line goes on to its depth, along which FLOP grow in the same proportion.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor, nn

from beit.batch import IGNORED, ImageBatch
from beit.data.views.augment import prepare
from beit.data.views.draws import Key, MaskPlan, colour_draws, draw_masks
from beit.data.views.views import ViewSettings
from beit.engine.distribution import World
from beit.engine.ema import WeightAverage
from beit.engine.failure import is_out_of_memory
from beit.engine.optimiser import optimiser_of, trainable
from beit.engine.settings import FitSettings
from beit.engine.step import TrainingStep, compile_parts

Call = Callable[[], object]
SIZES = 4  # the larger batch that is timed is this many times the smaller one
_MOST = 200  # rounds
_PEAK = {"cpu": 1024, "cuda": 8192}  # sides of the matrices


class Cost(NamedTuple):
    """Seconds on one device: of a step whatever its size, of each picture in it, of beginning."""

    fixed: float
    each: float
    first: float = 0.0  # what the first step takes beyond the others

    def at(self, pictures: float) -> float:
        """Seconds of a step of so many pictures."""
        return self.fixed + self.each * pictures

    def deeper(self, other: "Cost", times: float) -> "Cost":
        """The line through this cost (at 0) and another (at 1), at `times`; never below this."""
        return Cost(*(max(a, a + (b - a) * times) for a, b in zip(self, other, strict=True)))


class Timed(NamedTuple):
    """A cost, and the largest batch that it was measured with."""

    cost: Cost
    pictures: int


@dataclass(frozen=True)
class Shape:
    """What a random batch is to look like."""

    views: ViewSettings
    masks: MaskPlan | None = None
    codes: tuple[int, int] | None = None  # grid of the visual tokens that it brings
    classes: int = 0  # labels, where there are any
    pixel_classes: int = 0  # of masks, where there are any


def random_batch(shape: Shape, pictures: int, device: torch.device) -> ImageBatch:
    """A batch as the loader hands it over, of random pixels."""
    keys = [Key(0, 0, index) for index in range(pictures)]
    views, where = shape.views, torch.arange(pictures)
    sizes = (views.patch_view, views.token_view)
    patch_view, token_view = (None if s is None else _pixels(pictures, s) for s in sizes)
    batch = ImageBatch(
        index=where,
        epoch=torch.zeros_like(where),
        patch_view=patch_view,
        token_view=token_view,
        colour=colour_draws(keys, views.jitter, flip=views.flip),
        masks=None if shape.masks is None else draw_masks(shape.masks, keys),
        codes=None if shape.codes is None else torch.zeros(pictures, *shape.codes).long(),
        label=where % shape.classes if shape.classes else None,
        target=_masks(pictures, shape) if shape.pixel_classes else None,
    )
    return batch.to(device)


def _pixels(pictures: int, size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (pictures, 3, *size), dtype=torch.uint8)


def _masks(pictures: int, shape: Shape) -> Tensor:
    assert shape.views.patch_view is not None
    size = (pictures, *shape.views.patch_view)
    return torch.randint(0, min(shape.pixel_classes, IGNORED), size, dtype=torch.uint8)


def step_on(
    task: nn.Module, settings: FitSettings, device: torch.device
) -> Callable[[ImageBatch], Call]:
    """The engine's training step of a task: from the batch it is to learn from to a call."""
    task.to(device).train()
    optimiser = optimiser_of(task, settings)
    average = None if settings.ema is None else WeightAverage(trainable(task), settings.ema)
    if settings.compile:
        compile_parts(task)

    def make(batch: ImageBatch) -> Call:
        one = replace(settings, global_batch=len(batch.index), accumulate=1)
        step = TrainingStep(task, optimiser, average, one, World(), device, prepare=prepare)
        batches: Iterator[ImageBatch] = repeat(batch)
        return lambda: step(0, batches)

    return make


def steps_of(
    task: nn.Module, shape: Shape, settings: FitSettings, device: torch.device
) -> Callable[[int], Call]:
    """Training steps of a task: a function from pictures a step to a step that can be called."""
    step = step_on(task, settings, device)
    return lambda pictures: step(random_batch(shape, pictures, device))


def cost(
    make: Callable[[int], Call], most: int, budget: float, device: torch.device, *, least: int = 1
) -> Timed:
    """Time something at two sizes, in turns; smaller ones where memory does not suffice.

    Args:
        make: From a number of pictures to a call.
        most: Pictures in a real call; more are never timed.
        budget: Seconds that this may take, roughly; two rounds are made at any rate.
        device: What computes.
        least: Pictures in a call at least.
    """
    small = min(most, max(least, SIZES))
    call = make(small)
    timed(call, device)  # the first time is no measure
    each = timed(call, device) / small
    rounds = 3
    # A round is one call of each size, and each size is called once more to warm up.
    fitting = int(budget / ((rounds + 1) * (1 + 1 / SIZES) * each))
    large = most if fitting >= most else max(small, fitting // SIZES * SIZES)
    while True:
        smaller = max(min(least, large), large // SIZES)
        try:
            return Timed(_line(make, smaller, large, budget, device), large)
        except Exception as error:
            if large == small or not is_out_of_memory(error):
                raise
        # Past the handler, when nothing holds the error and the tensors of its frames.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        large = max(small, large // 2 // SIZES * SIZES)


def _line(
    make: Callable[[int], Call], smaller: int, large: int, budget: float, device: torch.device
) -> Cost:
    """The cost along which two sizes lie; where there is one, all of it is the pictures'."""
    if smaller == large:
        (long,), first = _in_turns([make(large)], budget, device)
        return Cost(0.0, long / large, first)
    (short, long), first = _in_turns([make(smaller), make(large)], budget, device)
    slope = min((long - short) / (large - smaller), long / large)
    each = max(slope, 0.5 * long / large)  # noise must not turn a step into overhead
    return Cost(long - each * large, each, first)


def _in_turns(calls: list[Call], budget: float, device: torch.device) -> tuple[list[float], float]:
    """Mean seconds of each call, and what the first one of the last took beyond.

    The mean, not the median: a run pays for the slow moments of a machine too.
    """
    warm_ups = [timed(call, device) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    while len(times[0]) < 2 or (
        len(times[0]) < _MOST
        and (time.perf_counter() - began) * (1 + 1 / len(times[0])) < 0.8 * budget
    ):
        for call, found in zip(calls, times, strict=True):
            found.append(timed(call, device))
    means = [statistics.fmean(found) for found in times]
    return means, max(0.0, warm_ups[-1] - means[-1])


def timed(call: Call, device: torch.device) -> float:
    """Seconds of a call, what it left the device to do included."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(
    device: torch.device, dtype: torch.dtype, rounds: int = 8, size: int | None = None
) -> float:
    """FLOP/s of a large matrix product here and now: the fastest of some rounds.

    A shared machine slows down for moments; the ceiling is what it can do when it does not.
    """
    size = size or _PEAK[device.type]
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timed(lambda: one @ other, device)
    return 2 * size**3 / min(timed(lambda: one @ other, device) for _ in range(rounds))


def seconds_a_picture(batches: Iterator[ImageBatch], budget: float) -> float:
    """How long a loader without processes of its own takes for a picture.

    The first batch only warms up.
    """
    next(batches)
    pictures, began = 0, time.perf_counter()
    while pictures == 0 or time.perf_counter() - began < budget:
        pictures += len(next(batches).index)
    return (time.perf_counter() - began) / pictures
