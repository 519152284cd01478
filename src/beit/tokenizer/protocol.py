"""All that pre-training knows of a tokenizer."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Tokenizer(Protocol):
    """Maps pictures to grids of indices into a codebook (arXiv:2106.08254, section 2.1.2)."""

    @property
    def vocabulary(self) -> int:
        """How many codes there are, K."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """The (height, width) in pixels that `codes` expects."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """The (height, width) of the grid of codes."""
        ...

    def codes(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) floats in [0, 1] to (B, h, w) int64 codes in [0, K)."""
        ...
