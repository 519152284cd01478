"""What a run is asked to do, and what came of it."""

import os
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from beit.engine.schedules import Schedule
from beit.errors import UserError
from beit.shares import Shares


def promise_repeatable_products() -> None:
    """Have cuBLAS give the same bits each time; it reads this when it first multiplies."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@dataclass(frozen=True)
class FitSettings:
    """The numbers of one run. Rates are per optimiser step and final (already scaled).

    Neither `accumulate` nor the number of processes changes what is computed, only how it is
    cut up: the global batch stays what it is. Tasks that make more of a micro-batch than a sum
    over its pictures say so; see `beit.engine.protocol.MindsCutting`.
    """

    total_steps: int
    global_batch: int  # pictures an optimiser step, over all ranks and micro-batches
    learning_rate: float
    minimum_rate: float = 0.0
    warmup_steps: int = 0
    schedule: Schedule = "cosine"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None  # largest norm of the whole gradient; None: as it is
    ema: float | None = None  # decay of the averaged weights; None: no average
    accumulate: int = 1  # micro-batches a step, on each rank
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    deterministic: bool = False  # bitwise repeatable on a GPU too, at some cost
    device: str = "cpu"  # "cpu" or "cuda"; the local rank picks which
    log_every: int = 50  # steps between two reads of the device's numbers
    save_every: int = 1000
    keep: int = 2  # checkpoints that stay; two at least
    evaluate_every: int = 0  # 0: never, not even at the end
    epoch_size: int | None = None  # samples an epoch, for the log only
    tensorboard: bool = True
    accept_changed: frozenset[str] = frozenset()  # fingerprints that may differ when resuming
    # Weights that are written in the end or on the way, as paths in the run folder; room is kept.
    models: tuple[str, ...] = ("model.safetensors",)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        positive = ("total_steps", "global_batch", "accumulate", "log_every", "save_every")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.keep < 2:
            raise UserError(f"keep must be at least 2 checkpoints, not {self.keep}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UserError(f"ema must lie in [0, 1), not {self.ema}")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"clip must be above 0, not {self.clip}; leave it out for no clipping")
        if self.evaluate_every < 0 or self.warmup_steps < 0:
            raise UserError("evaluate_every and warmup_steps must not be negative")

    def micro_batch(self, world_size: int) -> int:
        """Pictures in one forward pass of one rank; see `shares`."""
        return self.shares(world_size).micro_batch_size

    def shares(self, world_size: int, rank: int = 0) -> Shares:
        """How the global batch is cut.

        Raises:
            UserError: It does not divide.
        """
        return Shares(self.global_batch, world_size, rank, self.accumulate)


@dataclass(frozen=True)
class FitResult:
    """How a run ended."""

    step: int
    samples_seen: int
    stop_reason: str | None = None  # None: all steps were made
    metrics: dict[str, float] = field(default_factory=dict)  # of the last training step
    validation: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    average: dict[str, Tensor] | None = None  # averaged weights by parameter name
