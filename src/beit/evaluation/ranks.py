"""Sums over ranks, for scores that are to be the same however the data was shared out."""

import torch
import torch.distributed as dist
from torch import Tensor


def summed_over_ranks(*parts: Tensor) -> tuple[Tensor, ...]:
    """Add each tensor up over all ranks; the results lie on the CPU and the arguments stay.

    With a process group every rank must call this; without one it copies.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tuple(part.cpu().clone() for part in parts)
    on_device = dist.get_backend() == "nccl"  # which sums nothing that lies elsewhere
    device = torch.device("cuda", torch.cuda.current_device()) if on_device else "cpu"
    sums = []
    for part in parts:
        total = part.to(device, copy=True)
        dist.all_reduce(total)
        sums.append(total.cpu())
    return tuple(sums)
