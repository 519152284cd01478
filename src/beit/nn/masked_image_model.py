"""The model of pre-training: an encoder over a masked image and a head at the listed places."""

# B images, (h, w) patch grid, M listed places, K outputs a place, L depth

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from beit.nn.encoder import Encoder
from beit.nn.heads import MaskedPixelHead, MaskedTokenHead


class MaskedPlaces(Protocol):
    """What the model needs to know of `beit.batch.Masks`."""

    @property
    def grid(self) -> Tensor:
        """(B, h, w) bool, True = masked."""

    @property
    def index(self) -> Tensor:
        """(B, M) int64, row-major patches to predict, padding included."""


class MaskedImageModel(nn.Module):
    """Predict something at listed places of a masked image (section 2.3, eq. 3).

    Which places are masked and which are predicted are two things: listing every patch recovers
    all tokens, and an all-False grid masks nothing (the paper's ablations).

    Departure: the last block's MLP runs at the listed places alone. The result is the same.
    """

    def __init__(self, encoder: Encoder, head: MaskedTokenHead | MaskedPixelHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(
        self, images: Tensor, masks: MaskedPlaces, path_draws: Tensor | None = None
    ) -> Tensor:
        """Predict.

        Args:
            images: (B, C, H, W) normalised floats.
            masks: The masked patches and the listed places.
            path_draws: (B, 2 L) draws of stochastic depth, see `Encoder.forward`.

        Returns:
            (B, M, K) logits or pixels at the listed places, padding included.

        Raises:
            ValueError: The masks are a mere grid, or something is of another shape.
        """
        if isinstance(masks, Tensor):
            raise ValueError(
                "masks are a grid and a list of the places to predict: give "
                "beit.batch.Masks.from_grid(grid) instead of a tensor"
            )
        read = 1 + masks.index  # the special token is token 0
        output = self.encoder(images, masks.grid, path_draws=path_draws, read=read)
        return self.head(output.tokens)  # type: ignore[no-any-return]

    def undecayed_parameters(self) -> frozenset[str]:
        """The encoder's names exempt from weight decay, as this module names them."""
        return frozenset(f"encoder.{name}" for name in self.encoder.undecayed_parameters())
