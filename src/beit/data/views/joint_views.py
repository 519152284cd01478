"""One crop of a picture and of its mask: the same place, the same scale, two ways of reading.

The picture is interpolated, the mask never: each of its pixels is the nearest stored one. The
scaled picture is not made; only the crop is, straight from the pixels it covers, so that a picture
of any shape costs no more than its crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.batch import IGNORED
from beit.data.views.draws import Key
from beit.errors import UserError
from beit.pixels import PIXEL_MEAN

# (H, W) the stored picture, (h, w) the scaled one, (R, C) rows and columns of the crop
_REDRAWS = 10
_PADDING = np.rint(np.array(PIXEL_MEAN) * 255).astype(np.uint8)  # about 0 once normalised


@dataclass(frozen=True)
class JointViewSettings:
    """What is made of each picture and its mask. Sizes are (height, width).

    Departure: the reference flips and jitters before it pads, so that its padding lies at the right
    and is exactly zero; here the padded crop is what the device flips and jitters. It also lets no
    picture grow longer than four times the short side; here only crops are ever held.
    """

    size: tuple[int, int]  # of the crop; what a smaller picture leaves free is padding
    short_side: int  # pixels that the shorter side is brought to before a scale is drawn
    scale: tuple[float, float] = (0.5, 2.0)  # uniform
    flip: bool = True
    jitter: float = 0.4  # brightness, contrast and saturation alike
    random: bool = True  # False: scale 1, crop at the centre, no draws
    most_of_one_class: float = 0.75  # of a crop's counted pixels, else it is drawn again; 1 = off

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.short_side < 1:
            raise UserError(
                f"crop and short side must be at least 1, not {self.size} and {self.short_side}"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"the picture's scale must rise above 0, not {self.scale}")
        if self.jitter < 0:
            raise UserError(f"jitter must not be negative, not {self.jitter}")
        if not 0 < self.most_of_one_class <= 1:
            raise UserError(
                f"the most of one class must lie in (0, 1], not {self.most_of_one_class}"
            )

    @property
    def augments(self) -> bool:
        """Whether the device is to be given draws."""
        return self.random and (self.flip or self.jitter > 0)


class _Crop(NamedTuple):
    """A part of a scaled picture; it lies inside."""

    scaled: tuple[int, int]  # (h, w)
    top: int
    left: int
    size: tuple[int, int]  # (R, C), never larger than the scaled picture


def make_joint_view(
    image: Image.Image, mask: NDArray[np.uint8], settings: JointViewSettings, key: Key
) -> tuple[Tensor, Tensor]:
    """Cut the same piece from a picture and its mask.

    Args:
        image: RGB.
        mask: (H, W) the class of each of its pixels, 255 = ignored.
        settings: What is wanted.
        key: The sample; without randomness it is not used.

    Returns:
        The picture's piece (3, R, C) and the mask's (R, C), both uint8. Beyond the picture's right
        and lower edge the piece has the mean colour and the mask 255.
    """
    assert mask.shape == (image.height, image.width), "a mask has its picture's size"
    if settings.random:
        crop = _drawn_crop(mask, settings, key)
    else:
        crop = _centre_crop(mask, settings)
    rows, columns = crop.size
    view = np.empty((*settings.size, 3), np.uint8)
    view[:] = _PADDING
    view[:rows, :columns] = _interpolated(image, crop)
    target = np.full(settings.size, IGNORED, np.uint8)
    target[:rows, :columns] = _nearest(mask, crop)
    return torch.from_numpy(view).permute(2, 0, 1), torch.from_numpy(target)


def _drawn_crop(mask: NDArray[np.uint8], settings: JointViewSettings, key: Key) -> _Crop:
    """Draw scale and place; draw the place anew while one class fills nearly all of it.

    As in the reference's data pipeline the crop of the last redraw is taken unseen, and a crop
    without a second class is drawn again, whatever the limit.
    """
    low, high = settings.scale
    factor = low + (high - low) * key.generator("scale").random()
    scaled = _scaled_size(mask.shape, settings.short_side * factor)
    places = key.generator("crop").random((1 + _REDRAWS, 2)).tolist()
    for vertical, horizontal in places[:-1]:
        crop = _crop_at(scaled, settings.size, vertical, horizontal)
        if settings.most_of_one_class == 1 or _is_mixed(mask, crop, settings.most_of_one_class):
            return crop
    return _crop_at(scaled, settings.size, *places[-1])


def _centre_crop(mask: NDArray[np.uint8], settings: JointViewSettings) -> _Crop:
    return _crop_at(_scaled_size(mask.shape, settings.short_side), settings.size, 0.5, 0.5)


def _scaled_size(size: tuple[int, ...], short_side: float) -> tuple[int, int]:
    """(h, w) of a picture whose shorter side is brought to a length, the shape kept."""
    factor = short_side / min(size)
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def _crop_at(
    scaled: tuple[int, int], size: tuple[int, int], vertical: float, horizontal: float
) -> _Crop:
    """The crop at a share in [0, 1) of the room there is."""
    rows, columns = min(scaled[0], size[0]), min(scaled[1], size[1])
    top = int(vertical * (scaled[0] - rows + 1))
    left = int(horizontal * (scaled[1] - columns + 1))
    return _Crop(scaled, top, left, (rows, columns))


def _is_mixed(mask: NDArray[np.uint8], crop: _Crop, most: float) -> bool:
    counts = np.bincount(_nearest(mask, crop).ravel(), minlength=256)[:IGNORED]
    return bool(np.count_nonzero(counts) > 1 and counts.max() < most * counts.sum())


def _nearest(mask: NDArray[np.uint8], crop: _Crop) -> NDArray[np.uint8]:
    """The piece of a mask: for each pixel the stored one that its centre falls in."""
    height, width = mask.shape
    rows = _stored_places(crop.top, crop.size[0], height, crop.scaled[0])
    columns = _stored_places(crop.left, crop.size[1], width, crop.scaled[1])
    return mask[rows[:, None], columns]


def _stored_places(start: int, count: int, stored: int, scaled: int) -> NDArray[np.int64]:
    """Which of the stored rows (or columns) hold the centres of some scaled ones."""
    return (2 * np.arange(start, start + count, dtype=np.int64) + 1) * stored // (2 * scaled)


def _interpolated(image: Image.Image, crop: _Crop) -> NDArray[np.uint8]:
    """The piece of a picture, bicubic: what cropping the scaled picture would give."""
    (height, width), (rows, columns) = crop.scaled, crop.size
    across, down = image.width / width, image.height / height  # stored pixels a scaled one
    box = (
        crop.left * across,
        crop.top * down,
        min((crop.left + columns) * across, image.width),
        min((crop.top + rows) * down, image.height),
    )
    piece = image.resize((columns, rows), Image.Resampling.BICUBIC, box=box)
    return np.asarray(piece)
