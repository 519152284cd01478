"""An exponential moving average of the trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def average_decay(step: int, decay: float) -> float:
    """The decay at a step: less at the start, so that the initial weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """Holds one averaged tensor for each trained parameter; buffers stay the model's own."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = dict(parameters)
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int, stopped: Tensor | None = None) -> None:
        """Move towards the weights after optimiser step number `step` (from 0).

        Args:
            step: Which step.
            stopped: 0-d on the device: where it is 1 nothing moves, without the host's knowing.
        """
        weight = 1.0 - average_decay(step, self.decay)
        averages = list(self.tensors.values())
        current = [parameter.detach() for parameter in self._parameters.values()]
        if stopped is None:
            torch._foreach_lerp_(averages, current, weight)
            return
        moves = torch._foreach_sub(current, averages)
        torch._foreach_mul_(moves, weight * (1 - stopped))
        torch._foreach_add_(averages, moves)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the averages from a checkpoint."""
        assert set(tensors) == set(self.tensors), "the average is of other parameters"
        for name, value in tensors.items():
            self.tensors[name].copy_(value)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the model the averaged weights for a while."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._fill(self.tensors)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])
