"""What the engine asks of a task: a module whose forward gives a loss and its weight."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from beit.randomness import step_seed, step_uniform


class StepOutput(NamedTuple):
    """What a task returns for one micro-batch.

    `loss` and every metric are means over `weight` things (masked places, pictures). The engine
    joins micro-batches and ranks by these weights, so neither accumulation nor the number of ranks
    changes the gradient. All are 0-d tensors on the device; nothing here may ask the device.
    """

    loss: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]  # detached


@dataclass(frozen=True)
class StepContext:
    """Where in the run a micro-batch stands: the key of all chance inside the step."""

    seed: int
    step: int  # from 0: the number of optimiser steps already done
    total_steps: int
    rows: range  # the place of this micro-batch's rows in the global batch
    rank: int = 0

    @property
    def progress(self) -> float:
        """How much of the run is done before this step, in [0, 1)."""
        return self.step / max(1, self.total_steps)

    def uniform(self, columns: int, stream: str, device: torch.device) -> Tensor:
        """Uniform draws in [0, 1) for this micro-batch's rows: (len(rows), columns) float32.

        The same for a row of the global batch whatever the accumulation or the number of ranks.
        """
        drawn = step_uniform(self.seed, self.step, self.rows, columns, stream)
        if device.type == "cuda":
            drawn = drawn.pin_memory()  # else the copy would wait for the device
        return drawn.to(device, non_blocking=True)

    def generator(self, stream: str) -> np.random.Generator:
        """Chance of a whole step, on the host: the same on every rank and in every micro-batch."""
        return np.random.default_rng(step_seed(self.seed, self.step, stream=stream))


class Task(Protocol):
    """An nn.Module that turns a batch into a StepOutput.

    Parameters with `requires_grad=False` (a frozen tokenizer held as a submodule) are saved with
    the rest, but neither optimised nor averaged.
    """

    def __call__(self, batch: Any, context: StepContext) -> StepOutput:
        """Run the forward pass of one micro-batch, in evaluation mode once after the last step."""
        ...

    def undecayed_parameters(self) -> frozenset[str]:
        """Names of parameters without weight decay, beside all 1-D ones and biases."""
        ...


@runtime_checkable
class ScalesRates(Protocol):
    """A task may also scale the learning rate of single parameters (layer-wise decay)."""

    def rate_scales(self) -> Mapping[str, float]:
        """Factors by parameter name; 1 where a name is missing."""
        ...


class Cutting(NamedTuple):
    """What becomes of a step when its batch is cut into more micro-batches."""

    multiple: int = 1  # of which micro-batches must have a whole number of pictures
    changes: str = ""  # what is then computed otherwise, in words; nothing where it is empty


AT_WILL = Cutting()


@runtime_checkable
class MindsCutting(Protocol):
    """A task whose micro-batches are more than a sum over pictures; others are cut at will."""

    def cutting(self) -> Cutting:
        """What has to be minded."""
        ...


class Batch(Protocol):
    """The engine's view of a batch: something that moves; its other fields are the task's affair.

    When a batch has `index` and `epoch` tensors, a failure dump names the samples by them.
    """

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Batch":
        """Return the batch on the device."""
        ...


class Evaluation(NamedTuple):
    """What an evaluation found, a reason to stop the run early, and something to warn of."""

    metrics: dict[str, float]
    stop_reason: str | None = None
    warning: str | None = None


@dataclass(frozen=True)
class Hooks:
    """What of the caller's own goes into a run; an error in it ends the run as it is.

    Attributes:
        on_row: Called on the first rank with each row of metrics once it is logged ("split" tells
            steps, "train", from evaluations, "val"). Where a run was killed and goes on, rows after
            its last checkpoint come again.
        after_step: Called on every rank after each step with the task and the step's number, from
            1, before anything is measured or saved.
        optimiser: Makes the optimiser from groups, dicts with "params", "names", "weight_decay" and
            "scale", which it has to keep; None makes AdamW. The rate is set before each step.
    """

    on_row: Callable[[dict[str, Any]], object] | None = None
    after_step: Callable[[nn.Module, int], object] | None = None
    optimiser: Callable[[list[dict[str, Any]]], Optimizer] | None = None


NO_HOOKS = Hooks()
Batches = Callable[[int], Iterator[Any]]  # samples_seen -> this rank's micro-batches, endless
Prepare = Callable[[Any], Any]  # a batch on the device -> the batch as the task wants it
Evaluate = Callable[[nn.Module, int], Evaluation]  # (the averaged or plain task, step)
