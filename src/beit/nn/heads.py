"""Heads: what turns tokens into predictions; each begins with the encoder's final LayerNorm."""

# B images, N patches, M places, D width, K codes

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from beit.nn.initialisation import initialise_linears_
from beit.nn.transformer import NORM_EPSILON

Pool = Literal["mean", "special"]


class _NormalisedLinear(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.output = nn.Linear(width, outputs)
        initialise_linears_(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) tokens to (..., outputs)."""
        return self.output(self.norm(tokens))  # type: ignore[no-any-return]


class MaskedTokenHead(_NormalisedLinear):
    """Logits over the visual vocabulary: (B, M, D) to (B, M, K) (section 2.3)."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__(width, vocabulary)
        self.vocabulary = vocabulary


class MaskedPixelHead(_NormalisedLinear):
    """Pixels of a patch, for the ablation without visual tokens: (B, M, D) to (B, M, pixels)."""

    def __init__(self, width: int, patch_pixels: int) -> None:
        super().__init__(width, patch_pixels)
        self.patch_pixels = patch_pixels


class ClassifierHead(_NormalisedLinear):
    """Logits over classes from all tokens: pool, LayerNorm, linear (section 2.6).

    Args:
        width: Features a token.
        classes: Outputs.
        pool: The mean over patches without the special token, or the special token alone.
        initial_factor: Shrinks the initial weights, so that fine-tuning starts from even odds.
    """

    def __init__(
        self, width: int, classes: int, pool: Pool = "mean", initial_factor: float = 0.001
    ) -> None:
        super().__init__(width, classes)
        assert pool in ("mean", "special"), pool
        self.pool = pool
        self.output.weight.data.mul_(initial_factor)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + N, D) tokens, the special one first, to (B, classes)."""
        return super().forward(tokens[:, 1:].mean(1) if self.pool == "mean" else tokens[:, 0])
