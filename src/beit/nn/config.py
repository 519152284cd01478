"""What an encoder is made of, as one frozen, JSON-able record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from beit.errors import UserError

RelativePositions = Literal["none", "shared", "per-layer"]
# Far beyond any that was trained.
LARGEST_SIDE, LARGEST_WIDTH, DEEPEST, MOST_PATCHES = 16_384, 16_384, 1_000, 1 << 18


@dataclass(frozen=True)
class EncoderConfig:
    """The architecture of an encoder (section 2.1 and appendix of the paper).

    Attributes:
        image_size: (height, width) in pixels.
        patch_size: (height, width) in pixels; must divide the image.
        width: Features a token.
        depth: Transformer blocks.
        heads: Attention heads; must divide the width.
        channels: Colours of the image.
        mlp_ratio: Hidden features of the MLP as a multiple of the width.
        absolute_positions: Learned embedding a place, special token included.
        relative_positions: Learned attention bias by offset: none, one table for all blocks, or
            one table a block. May be combined with absolute positions.
        layer_scale: Initial value of the learned factor a feature on each residual branch; None
            leaves the factors out.
        drop_path: Stochastic depth of the last block; it grows linearly from 0 at the first.
        dropout: After the second MLP layer, nowhere else.
        checkpointing: Recompute blocks in the backward pass to save memory.

    Raises:
        UserError: A value is out of range or sizes do not divide.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    depth: int
    heads: int
    channels: int = 3
    mlp_ratio: float = 4.0
    absolute_positions: bool = True
    relative_positions: RelativePositions = "none"
    layer_scale: float | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        self._require_sizes()
        if self.width % self.heads:
            raise UserError(f"width {self.width} does not divide into {self.heads} heads")
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.layer_scale is not None and not math.isfinite(self.layer_scale):
            raise UserError(f"layer_scale must be a number or none, not {self.layer_scale}")
        if self.relative_positions not in ("none", "shared", "per-layer"):
            raise UserError(
                f"relative_positions must be none, shared or per-layer, "
                f"not {self.relative_positions!r}"
            )

    def _require_sizes(self) -> None:
        for name in ("image_size", "patch_size", "width", "depth", "heads", "channels", "hidden"):
            size = getattr(self, name)
            if min(size if isinstance(size, tuple) else (size,)) < 1:
                raise UserError(
                    f"every size of an encoder must be at least 1, and {name} is {size}"
                )
        for name, most in (("image_size", LARGEST_SIDE), ("width", LARGEST_WIDTH)):
            size = getattr(self, name)
            if max(size if isinstance(size, tuple) else (size,)) > most:
                raise UserError(f"an encoder's {name} is at most {most}, not {size}")
        if self.depth > DEEPEST:
            raise UserError(f"an encoder has at most {DEEPEST} layers, not {self.depth}")
        if self.patches > MOST_PATCHES:
            raise UserError(
                f"an encoder sees at most {MOST_PATCHES} patches, and {self.grid[0]}x"
                f"{self.grid[1]} are asked for: choose larger patches or a smaller image"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches.

        Raises:
            UserError: The patch size does not divide the image size.
        """
        (height, width), (patch_height, patch_width) = self.image_size, self.patch_size
        if height % patch_height or width % patch_width:
            raise UserError(
                f"patches of {patch_height}x{patch_width} do not divide an image of "
                f"{height}x{width}; choose an image size that is a multiple of the patch size"
            )
        return height // patch_height, width // patch_width

    @property
    def patches(self) -> int:
        """N, the patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Numbers in a flattened patch: channels x patch height x patch width."""
        return self.channels * self.patch_size[0] * self.patch_size[1]

    @property
    def hidden(self) -> int:
        """Hidden features of the MLP."""
        return int(self.width * self.mlp_ratio)
