"""The few dataclasses that travel from data to task.

Legend: B images, (h, w) patch grid, N = h * w patches, M masked places (padded), D width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from beit.errors import UserError

IGNORED = 255  # in a target: the pixel counts for nothing, be it unlabelled or outside the picture

_Travels = TypeVar("_Travels", bound="Travels")
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Travels:
    """A dataclass of tensors and other such dataclasses that moves as a whole."""

    def to(self: _Travels, device: torch.device, *, non_blocking: bool = False) -> _Travels:
        """Return a copy whose tensors lie on the device."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (Tensor, Travels)):
                moved[field.name] = value.to(device, non_blocking=non_blocking)
        return replace(self, **moved)

    def pin_memory(self: _Travels) -> _Travels:
        """Return a copy in page-locked memory (torch's loader calls this by name)."""
        pinned = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (Tensor, Travels)):
                pinned[field.name] = value.pin_memory()
        return replace(self, **pinned)


@dataclass(frozen=True)
class Masks(Travels):
    """Which patches are masked: as a grid, and as a list of fixed length with padding.

    The list lets the head read only masked places without boolean indexing, so no shape depends on
    the draw and the device is never asked how many there are.
    """

    grid: Tensor  # (B, h, w) bool, True = masked
    index: Tensor  # (B, M) int64, row-major patch index; padding points at patch 0
    weight: Tensor  # (B, M) float32, 1 at masked places, 0 at padding

    @classmethod
    def from_grid(cls, grid: Tensor, capacity: int | None = None) -> Masks:
        """The masks that a grid shows, with their places listed in row-major order.

        Args:
            grid: (B, h, w) bool, True = masked.
            capacity: M; by default what the fullest mask needs, for which the device is asked.

        Raises:
            UserError: The grid is no such tensor, or a mask has more places.
        """
        if grid.dim() != 3 or grid.dtype != torch.bool:
            raise UserError(
                f"masks are made from a grid (B, h, w) of torch.bool, not {grid.dtype} of shape "
                f"{tuple(grid.shape)}"
            )
        flat = grid.flatten(1)
        most = int(flat.sum(1).max()) if len(flat) else 0
        room = most if capacity is None else capacity
        if not most <= room <= flat.shape[1]:
            raise UserError(
                f"a list of {room} places does not fit masks of up to {most} of {flat.shape[1]} "
                "patches"
            )
        order = flat.byte().argsort(dim=1, descending=True, stable=True)[:, :room]
        listed = flat.gather(1, order)
        return cls(grid, torch.where(listed, order, 0), listed.float())

    def gather(self, values: Tensor) -> Tensor:
        """Read (B, N, ...) values at the listed places: (B, M, ...)."""
        index = self.index.view(*self.index.shape, *(1,) * (values.dim() - 2))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


@dataclass(frozen=True)
class ColourDraws(Travels):
    """What the device is to do to each sample, drawn on the host (law 1)."""

    flip: Tensor  # (B,) bool, mirror left to right
    brightness: Tensor  # (B,) float32 factors, 1 = unchanged
    contrast: Tensor  # (B,) float32
    saturation: Tensor  # (B,) float32
    order: Tensor  # (B, 3) int64, a permutation of 0 brightness, 1 contrast, 2 saturation


@dataclass(frozen=True)
class ImageBatch(Travels):
    """A batch on its way from the host to a task.

    The host hands over uint8 views and the draws; the device work
    (`beit.data.views.augment.prepare`) turns the patch view into normalised floats and the token
    view into floats in [0, 1].
    """

    index: Tensor  # (B,) int64, places in the source: the batch's identity
    epoch: Tensor  # (B,) int64
    patch_view: Tensor | None = None  # (B, 3, H, W) what the encoder sees
    token_view: Tensor | None = None  # (B, 3, H', W') the same crop as the tokenizer sees it
    colour: ColourDraws | None = None  # None: no device augmentation
    masks: Masks | None = None
    codes: Tensor | None = None  # (B, h, w) int64 visual tokens, where they were computed before
    label: Tensor | None = None  # (B,) int64, -1 = unlabelled
    target: Tensor | None = None  # (B, H, W) uint8 class of each pixel of the patch view
    replaced: tuple[tuple[int, str], ...] = ()  # (index, reason) of pictures that could not be read


def needed(part: _Part | None, name: str) -> _Part:
    """A part of a batch that a task cannot do without.

    Args:
        part: What the batch has there.
        name: What it is called, for the sentence.

    Raises:
        ValueError: It has nothing there.
    """
    if part is None:
        raise ValueError(f"the batch has no {name}, which is needed here")
    return part
