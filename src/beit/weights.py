"""What tells one set of weights from another."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Digest(Protocol):
    """A hash that takes its bytes piece by piece (hashlib's)."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""


def add_weights(digest: Digest, weights: Mapping[str, Tensor]) -> None:
    """Hash tensors with their names, types and shapes, in the order of the names."""
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
