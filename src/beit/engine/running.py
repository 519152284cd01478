"""What batch norms remember of the pictures they saw: state of a run that is no weight."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from beit.engine.distribution import World


class RunningStatistics:
    """Keeps the running means and variances of a task's batch norms in step with its weights.

    Each rank's norms see its own pictures; after a step all ranks hold the mean of what they found,
    so that they measure one model and rank 0 saves it. A step that is not applied leaves no trace.
    Tasks without batch norms have none, and cost nothing.
    """

    def __init__(self, task: nn.Module, world: World) -> None:
        norms = [module for module in task.modules() if isinstance(module, _BatchNorm)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._floats = [buffer for buffer in self._buffers if buffer.is_floating_point()]
        self._world = world
        self._before: list[Tensor] = []

    @torch.no_grad()
    def remember(self) -> None:
        """Note the state before a step."""
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def go_back(self) -> None:
        """After a step broken off: be as it was remembered, without asking other ranks."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    @torch.no_grad()
    def settle(self, undone: Tensor) -> None:
        """After a step: join what the ranks found, or go back where `undone`, on the device, is 1.

        `undone` must be the same on every rank.
        """
        self._join()
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(undone > 0, before, buffer))

    def _join(self) -> None:
        if self._world.size == 1 or not self._floats:
            return
        joined = torch.cat([buffer.flatten() for buffer in self._floats])
        self._world.add_(joined)
        joined /= self._world.size
        sizes = [buffer.numel() for buffer in self._floats]
        for buffer, mean in zip(self._floats, torch.split(joined, sizes), strict=True):
            buffer.copy_(mean.view_as(buffer))
