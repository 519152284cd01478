"""A class for every pixel of a picture of any size, from a model that sees one size only.

A picture is either squeezed to the model's size, or brought to a short side and seen through
windows that overlap; logits of overlapping windows are averaged. Several scales and the mirrored
picture can be seen too; their probabilities are averaged, at the picture's own size.
Legend: C classes, (H, W) the picture, (h, w) the scaled picture, B windows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from beit.errors import UserError
from beit.pixels import normalise

LogitsOf = Callable[[Tensor], Tensor]  # normalised (B, 3, h, w) -> (B, C, any, any)

_LONGEST = 8  # times the short side: longer pictures are made smaller, or windows would never end
_SCALES = (0.05, 20.0)  # of use; beyond, a picture is a dot or fills the memory
_SMALLEST = 2  # pixels of the short side; torch fails to resize a picture to one
_WINDOWS = 8  # seen at once
_BAND = 1 << 24  # numbers (C x rows x W) brought to the picture's own size at once


@dataclass(frozen=True)
class DenseSettings:
    """How a whole picture is seen. Sizes are (height, width)."""

    size: tuple[int, int]  # what the model sees: of the squeezed picture, or of a window
    short_side: int  # pixels that the shorter side is brought to for windows
    mode: Literal["whole", "slide"] = "slide"
    stride_share: float = 2 / 3  # step from window to window, as a share of the window
    scales: tuple[float, ...] = (1.0,)  # times the short side
    flip: bool = False  # see the mirrored picture too

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.short_side < 1:
            raise UserError(
                f"window and short side must be at least 1, not {self.size} and {self.short_side}"
            )
        if self.mode not in ("whole", "slide"):
            raise UserError(f"a picture is seen whole or by slide, not by {self.mode!r}")
        if not 0 < self.stride_share <= 1:
            raise UserError(f"the stride's share must lie in (0, 1], not {self.stride_share}")
        low, high = _SCALES
        if not self.scales or not all(low <= scale <= high for scale in self.scales):
            raise UserError(f"scales must be one or more of {low} to {high}, not {self.scales}")
        if self.mode == "slide" and self.short_side * min(self.scales) < _SMALLEST:
            raise UserError(
                f"a short side of {self.short_side} times scales {self.scales} leaves less than "
                f"{_SMALLEST} pixels of a picture: choose a larger short side or larger scales"
            )
        if self.mode == "whole" and set(self.scales) != {1.0}:
            raise UserError(
                f"a picture seen whole has the model's size, so scales {self.scales} change "
                "nothing: choose the mode slide, or scales 1.0"
            )


def dense_probabilities(
    model: LogitsOf, image: Tensor, settings: DenseSettings, device: torch.device
) -> Tensor:
    """The probability of each class at each pixel.

    Args:
        model: Gives logits of any resolution for normalised pictures of `settings.size`; in
            evaluation mode, which is the caller's to see to.
        image: (3, H, W) uint8.
        settings: How it is seen.
        device: Where the model is.

    Returns:
        (C, H, W) float32 on the device, summing to 1 over the classes. For large pictures of many
        classes that is large: see `dense_classes`.
    """
    return torch.cat(list(_bands(model, image, settings, device)), dim=1)


def dense_classes(
    model: LogitsOf, image: Tensor, settings: DenseSettings, device: torch.device
) -> Tensor:
    """The likeliest class of each pixel, (H, W) uint8 on the device.

    As the argmax of `dense_probabilities`, in the memory of a few rows of these.
    """
    bands = [band.argmax(0).to(torch.uint8) for band in _bands(model, image, settings, device)]
    return torch.cat(bands)


@torch.inference_mode()
def _bands(
    model: LogitsOf, image: Tensor, settings: DenseSettings, device: torch.device
) -> Iterator[Tensor]:
    """The probabilities (C, some rows, W), from the top down."""
    assert image.dtype == torch.uint8 and image.dim() == 3, "pictures are (3, H, W) uint8"
    height, width = image.shape[1:]
    seen = list(_looks(model, image, settings, device))
    rows = max(1, _BAND // (len(seen[0]) * width))
    for top in range(0, height, rows):
        band = range(top, min(top + rows, height))
        total: Tensor | float = 0.0
        for logits in seen:
            total = total + enlarged(logits, band, (height, width)).softmax(0)
        assert isinstance(total, Tensor)
        yield total / len(seen)


def _looks(
    model: LogitsOf, image: Tensor, settings: DenseSettings, device: torch.device
) -> Iterator[Tensor]:
    """The logits (C, h, w) of each scale, and of the mirrored picture turned back."""
    for scale in settings.scales:
        pixels = shown(image, _seen_size(image, settings, scale), device)
        yield _logits(model, pixels, settings)
        if settings.flip:
            yield _logits(model, pixels.flip(-1), settings).flip(-1)


def shown(image: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """A picture (3, H, W) of uint8 brought to a size and normalised on the device, (3, h, w)."""
    return normalise(_resized(image, size).to(device).float() / 255)


def _seen_size(image: Tensor, settings: DenseSettings, scale: float) -> tuple[int, int]:
    if settings.mode == "whole":
        return settings.size
    return scaled_size((image.shape[1], image.shape[2]), settings.short_side * scale)


def scaled_size(size: tuple[int, int], short_side: float) -> tuple[int, int]:
    """Height and width once the shorter side has a length, the shape kept.

    A picture more than eight times as long as wide is made smaller than that. Departure: the
    reference's library does so from four times on, and in training, where only a crop is held.
    """
    factor = min(short_side / min(size), _LONGEST * short_side / max(size))
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, on uint8 and on the host, as pictures are resized for training."""
    if image.shape[1:] == size:
        return image
    return functional.interpolate(
        image[None], size=size, mode="bicubic", align_corners=False, antialias=True
    )[0]


def _logits(model: LogitsOf, pixels: Tensor, settings: DenseSettings) -> Tensor:
    """The logits of a normalised picture (3, h, w) at its size, (C, h, w).

    Windows begin every stride, and the last of a row or column ends at the edge. Where the picture
    is smaller than a window the rest is the mean colour, and its logits are dropped.
    """
    height, width = pixels.shape[1:]
    rows, columns = settings.size
    room = (0, max(0, columns - width), 0, max(0, rows - height))
    padded = functional.pad(pixels, room)
    tops = window_starts(padded.shape[1], rows, settings.stride_share)
    lefts = window_starts(padded.shape[2], columns, settings.stride_share)
    places = [(top, left) for top in tops for left in lefts]
    total: Tensor | None = None
    for start in range(0, len(places), _WINDOWS):
        some = places[start : start + _WINDOWS]
        windows = [padded[:, top : top + rows, left : left + columns] for top, left in some]
        logits = _at_size(model(torch.stack(windows)).float(), settings.size)
        if total is None:
            total = logits.new_zeros(logits.shape[1], *padded.shape[1:])
        for (top, left), one in zip(some, logits, strict=True):
            total[:, top : top + rows, left : left + columns] += one
    assert total is not None
    down = _times_covered(tops, rows, padded.shape[1]).to(total.device)
    across = _times_covered(lefts, columns, padded.shape[2]).to(total.device)
    mean = total / (down[:, None] * across)
    return mean[:, :height, :width]


def window_starts(length: int, window: int, stride_share: float) -> list[int]:
    """Where windows begin along a side at least as long as a window."""
    stride = max(1, math.floor(window * stride_share + 1e-6))
    return [*range(0, length - window, stride), length - window]


def _times_covered(starts: list[int], window: int, length: int) -> Tensor:
    """(length,) how many windows see each place along a side."""
    places, begin = torch.arange(length), torch.tensor(starts)[:, None]
    return ((begin <= places) & (places < begin + window)).sum(0)


def _at_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, any, any) brought to what the model saw, as in training."""
    if logits.shape[2:] == size:
        return logits
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def enlarged(logits: Tensor, rows: range, size: tuple[int, int]) -> Tensor:
    """Some rows of logits (C, h, w) brought to a size by bilinear interpolation.

    The same as torch's without aligned corners, but it can be had row by row.

    Args:
        logits: (C, h, w).
        rows: Consecutive rows of the result that are wanted.
        size: (H, W) of the whole result.

    Returns:
        (C, len(rows), W).
    """
    above, below, down = _between(rows, size[0], logits.shape[1], logits.device)
    left, right, across = _between(range(size[1]), size[1], logits.shape[2], logits.device)
    mixed = torch.lerp(logits[:, above], logits[:, below], down[:, None])
    return torch.lerp(mixed[..., left], mixed[..., right], across)


def _between(
    places: range, count: int, stored: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The two stored places that each place lies between, and how near it is to the second."""
    centres = torch.arange(places.start, places.stop, dtype=torch.float64) + 0.5
    where = (centres * stored / count - 0.5).clamp(min=0)
    first = where.long()
    second = (first + 1).clamp(max=stored - 1)
    return first.to(device), second.to(device), (where - first).float().to(device)
