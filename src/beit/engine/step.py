"""One optimiser step: micro-batches, exact weighting, clipping, the update. Never asks the device.

The gradient of a step is that of the mean loss over all weighted things of the global batch,
however it is cut into micro-batches and ranks: each micro-batch adds the gradient of loss * weight,
and the sum is divided by the total weight of the step, on the device, together with clipping.

Departure: every rank holds the whole model (DistributedDataParallel). The plan wanted fully_shard
for models that do not fit; large's weights, gradients and averages take 5 GB. And the reference
averages each rank's mean loss, in which a masked patch counts for more where a rank has fewer.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from beit.engine.distribution import World
from beit.engine.ema import WeightAverage
from beit.engine.failure import Identity, batch_identity
from beit.engine.optimiser import set_rate, trainable
from beit.engine.protocol import Prepare, StepContext, StepOutput
from beit.engine.running import RunningStatistics
from beit.engine.schedules import SCHEDULES
from beit.engine.settings import FitSettings
from beit.randomness import step_seed

_TINY = 1e-12


class StepRecord(NamedTuple):
    """What is kept of a step until the next look at the device."""

    step: int  # the number of the step, from 1
    rate: float
    names: tuple[str, ...]
    values: Tensor  # (len(names),) float32 on the device
    identities: list[Identity]
    waited: float  # seconds in which the host had no pictures to go on with


class TrainingStep:
    """Makes optimiser steps on one rank; all state is in the task, optimiser and average.

    With `deferred` the host does not look whether a step is finite: a flag on the device stops this
    and all later updates (the fused optimiser reads it, as it does for GradScaler), and the caller
    finds the step in the records when it next reads them.
    """

    def __init__(
        self,
        task: nn.Module,
        optimiser: Optimizer,
        average: WeightAverage | None,
        settings: FitSettings,
        world: World,
        device: torch.device,
        *,
        prepare: Prepare | None = None,
    ) -> None:
        self._task = task
        self._optimiser = optimiser
        self._average = average
        self._settings = settings
        self._world = world
        self._device = device
        compiled = settings.compile and prepare is not None
        self._prepare = torch.compile(prepare) if compiled else prepare
        self._micro = settings.micro_batch(world.size)
        self._parameters = list(trainable(task).values())
        self._running = RunningStatistics(task, world)
        self._model = _parallel(task, world)
        self._stopped = torch.zeros((), device=device)
        self._last: tuple[Any, StepContext] | None = None  # a micro-batch of the last step
        self._waited = 0.0
        # Fused optimisers read the flag; others would apply a step that is not finite.
        heeds = getattr(optimiser, "_step_supports_amp_scaling", False)
        self.deferred = device.type == "cuda" and bool(heeds)

    def __call__(self, done: int, batches: Iterator[Any]) -> StepRecord:
        """Make the step after `done` steps and return its record; a bad one is not applied."""
        settings = self._settings
        rate = SCHEDULES[settings.schedule](
            done,
            total_steps=settings.total_steps,
            warmup_steps=settings.warmup_steps,
            peak=settings.learning_rate,
            minimum=settings.minimum_rate,
        )
        set_rate(self._optimiser, rate)
        self._optimiser.zero_grad()
        self._running.remember()
        self._waited = 0.0
        names, sums, identities = self._accumulate(done, batches)
        self._world.add_(sums)
        total = sums[0].clamp_min(_TINY)
        norm = self._scale_gradients(total)
        means = sums[1:] / total
        bad = ~(torch.isfinite(means[0]) & torch.isfinite(norm))
        self._stopped = torch.maximum(self._stopped, bad.float())
        self._running.settle(self._stopped)
        if self.deferred:
            self._optimiser.found_inf = self._stopped  # type: ignore[attr-defined]
        if self.deferred or not bool(bad):
            self._optimiser.step()
            if self._average is not None:
                self._average.update(done, self._stopped if self.deferred else None)
        values = torch.cat([bad.float()[None], means, norm[None]])
        names = ("bad", *names, "gradient_norm")
        return StepRecord(done + 1, rate, names, values, identities, self._waited)

    def leave_broken_off(self) -> None:
        """After a call that raised in its forward passes: have the task as before that step.

        Weights have not moved; the batch norms of the micro-batches that went through have.
        """
        self._running.go_back()

    @torch.no_grad()
    def loss_after(self) -> Tensor:
        """The loss that the weights after the last step give, with nothing dropped: 0-d.

        No step follows that would show what that step's update has made of them. It is asked on a
        micro-batch of that step, and leaves nothing changed.
        """
        assert self._last is not None, "the last step has been made"
        (batch, context), self._last = self._last, None
        self._task.eval()
        with self._autocast():
            output: StepOutput = self._task(batch, context)
        self._task.train()
        return output.loss

    def _accumulate(
        self, done: int, batches: Iterator[Any]
    ) -> tuple[tuple[str, ...], Tensor, list[Identity]]:
        """Run forward and backward over this rank's micro-batches.

        Returns:
            The names of loss and metrics; (1 + names,) sums: the weight, then each of them
            weighted; and who was in the batches.
        """
        identities: list[Identity] = []
        names: tuple[str, ...] = ()
        sums = torch.zeros((), device=self._device)
        for number in range(self._settings.accumulate):
            batch = self._next(batches)
            identities.append(batch_identity(batch))
            last = number == self._settings.accumulate - 1
            with self._without_reduction(last):
                output = self._forward(done, number, batch)
                weighted = output.loss.float() * (output.weight / self._micro)
                weighted.backward()  # type: ignore[no-untyped-call]
            names = ("loss", *output.metrics)
            numbers = [output.loss, *output.metrics.values()]
            means = torch.stack([value.detach().float() for value in numbers])
            weight = output.weight.detach().float()
            sums = sums + torch.cat([weight[None], means * weight])
        return names, sums, identities

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next micro-batch; how long the device had to do without is noted."""
        asked, worked = time.perf_counter(), time.thread_time()
        batch = next(batches)
        self._waited += time.perf_counter() - asked
        if self._device.type == "cpu":  # which reads the pictures itself: that is no waiting
            self._waited -= min(time.thread_time() - worked, time.perf_counter() - asked)
        return batch

    def _forward(self, done: int, number: int, batch: Any) -> StepOutput:
        settings, rank = self._settings, self._world.rank
        rows = settings.shares(self._world.size, rank).rows(number)
        torch.manual_seed(step_seed(settings.seed, done, rank, f"micro-{number}"))
        batch = batch.to(self._device, non_blocking=True)
        if self._prepare is not None:
            with torch.no_grad():
                batch = self._prepare(batch)
        context = StepContext(settings.seed, done, settings.total_steps, rows, rank)
        if done + 1 == settings.total_steps:
            self._last = batch, context
        with self._autocast():
            output: StepOutput = self._model(batch, context)
        return output

    def _autocast(self) -> torch.autocast:
        half = self._settings.precision == "bfloat16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=half)

    def _scale_gradients(self, total: Tensor) -> Tensor:
        """Turn summed gradients into those of the step's mean loss, clipped; return their norm."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        factor = self._micro * self._world.size / total  # DDP has divided by the ranks
        norm = get_total_norm(gradients) * factor
        if self._settings.clip is not None:
            factor = factor * (self._settings.clip / norm.clamp_min(_TINY)).clamp_max(1.0)
        torch._foreach_mul_(gradients, factor)
        return norm

    def _without_reduction(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()


def compile_parts(task: nn.Module) -> None:
    """Have torch compile, in place, the largest modules inside a task that are called.

    In place, so that names stay and nested attributes can be reached. A module without a forward of
    its own (a discrete VAE, a list) is never called, so that compiling it would do nothing; its
    parts are compiled instead.
    """
    # Products in float32 are what was asked for where nothing is said about precision.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    for child in task.children():
        if type(child).forward is nn.Module.forward:
            compile_parts(child)
        else:
            child.compile()


def _parallel(task: nn.Module, world: World) -> nn.Module:
    """Wrap for several ranks. No device ids: the batch is on the device already, not scattered."""
    if world.size == 1:
        return task
    # Batch norms are joined after each step; no other buffer changes in training.
    return DistributedDataParallel(task, gradient_as_bucket_view=True, broadcast_buffers=False)
