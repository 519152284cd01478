"""Batch norm over the pictures of all ranks, as the reference's SyncBN, also on a CPU."""

# B pictures of this rank, R ranks, C channels, (h, w) a map

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class RankedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of all ranks' pictures together.

    With one rank, and outside of training, it is torch's own, bit for bit. Every rank must bring
    maps of one size, as micro-batches are. Accumulation still cuts the statistics. Parameters and
    buffers have torch's names.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        if not self.training or ranks() == 1:
            return super().forward(features)
        # Collectives inside an autograd function are not traced. Asked for here, because the import
        # that a decorator brings takes a second. torch does not type it.
        over_ranks: Callable[[Tensor], Tensor]
        over_ranks = torch.compiler.disable(self._over_ranks)  # type: ignore[no-untyped-call]
        return over_ranks(features)

    def _over_ranks(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            values = features.float()
            count = values.numel() // values.shape[1] * ranks()
            mean = _summed(values.sum((0, 2, 3))) / count
            centred = values - mean[:, None, None]
            # From the differences, not from sums of squares, which would cancel.
            variance = _summed(centred.square().sum((0, 2, 3))) / count
            self._remember(mean.detach(), variance.detach() * (count / max(1, count - 1)))
            scale = self.weight * torch.rsqrt(variance + self.eps)
            found = centred * scale[:, None, None] + self.bias[:, None, None]
        return found.to(features.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _Sum(torch.autograd.Function):
    """A sum over ranks. Each rank's loss depends on it, so its gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Sum."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradients."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]  # nor this
    return total
