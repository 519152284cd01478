"""Every random number of a sample, drawn before a pixel is touched (law 1).

Each kind of draw has its own stream keyed by (seed, epoch, index), so adding an augmentation does
not change the draws of the others.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from beit.batch import ColourDraws, Masks
from beit.errors import UserError
from beit.masking import NO_MASK, Masker, capacity, masker_named, place_list, target_count
from beit.randomness import sample_generator

# B images, (h, w) patch grid, N = h * w patches, M listed places
_ATTEMPTS = 10
_ERASED = (0.02, 1 / 3)  # least and largest share of the area
_ERASED_RATIO = (0.3, 1 / 0.3)  # height / width
_MASK = "mask"  # the stream of masks


@dataclass(frozen=True)
class Key:
    """What a sample's chance is a function of."""

    seed: int
    epoch: int
    index: int
    view_epoch: int | None = None  # whose view is used again; None = the epoch's own

    @property
    def view(self) -> int:
        """The epoch that the view is drawn for."""
        return self.epoch if self.view_epoch is None else self.view_epoch

    def generator(self, stream: str) -> np.random.Generator:
        """The generator of one stream of this sample's draws.

        Departure: where views are used again, all that makes a view (crop, flip, colour, what takes
        the place of an unreadable picture) is drawn as in the epoch they are of; the mask is new.
        """
        epoch = self.epoch if stream == _MASK else self.view
        return sample_generator(self.seed, epoch, self.index, stream)


class Box(NamedTuple):
    """A region of a picture in whole pixels, as Pillow orders it."""

    left: int
    top: int
    right: int
    bottom: int


def crop_box(
    generator: np.random.Generator,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draw the region of a random resized crop.

    The law is torchvision's: the area a uniform share of the picture, the aspect ratio log-uniform,
    ten attempts to fit, else the largest centred region of an allowed ratio.

    Args:
        generator: Where the numbers come from; always 40 are taken.
        size: Height and width of the picture.
        scale: Least and largest share of the area.
        ratio: Least and largest width / height.
    """
    height, width = size
    uniform = generator.random((_ATTEMPTS, 4)).tolist()
    for area_draw, ratio_draw, top_draw, left_draw in uniform:
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** ratio_draw
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1))
            return Box(left, top, left + w, top + h)
    return centre_box(size, min(max(width / height, ratio[0]), ratio[1]), 1.0)


def centre_box(size: tuple[int, int], aspect: float, share: float) -> Box:
    """The largest centred region of an aspect ratio (width / height), its sides cut to a share."""
    height, width = size
    w, h = (width, width / aspect) if width / height < aspect else (height * aspect, height)
    w, h = max(1, min(width, round(w * share))), max(1, min(height, round(h * share)))
    left, top = (width - w) // 2, (height - h) // 2
    return Box(left, top, left + w, top + h)


def erased_box(
    generator: np.random.Generator, size: tuple[int, int], probability: float
) -> Box | None:
    """Draw the region that random erasing (arXiv:1708.04896) takes, None = none.

    The law is timm's: a uniform share of the area, a log-uniform aspect ratio, ten attempts to find
    sides shorter than the view's.

    Args:
        generator: Where the numbers come from; always 41 are taken.
        size: Height and width of the view.
        probability: That anything is erased.
    """
    height, width = size
    applied = generator.random() < probability
    uniform = generator.random((_ATTEMPTS, 4)).tolist()
    for area_draw, ratio_draw, top_draw, left_draw in uniform if applied else []:
        area = height * width * (_ERASED[0] + area_draw * (_ERASED[1] - _ERASED[0]))
        aspect = _ERASED_RATIO[0] * (_ERASED_RATIO[1] / _ERASED_RATIO[0]) ** ratio_draw
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1))
            return Box(left, top, left + w, top + h)
    return None


def colour_draws(keys: list[Key], jitter: float, *, flip: bool) -> ColourDraws:
    """Draw what the device is to do to each sample.

    Factors are uniform in [1 - jitter, 1 + jitter], cut at 0; the order of the three is a uniform
    permutation; without jitter it has no columns, and no round is spent on it.
    """
    factors = np.ones((len(keys), 3), np.float32)
    order = np.tile(np.arange(3 if jitter else 0), (len(keys), 1))
    flips = np.zeros(len(keys), np.bool_)
    for row, key in enumerate(keys):
        if flip:
            flips[row] = key.generator("flip").random() < 0.5
        if jitter:
            generator = key.generator("colour")
            factors[row] = generator.uniform(max(0.0, 1 - jitter), 1 + jitter, 3)
            generator.shuffle(order[row])
    brightness, contrast, saturation = torch.from_numpy(factors).unbind(1)
    return ColourDraws(
        torch.from_numpy(flips),
        brightness.clone(),
        contrast.clone(),
        saturation.clone(),
        torch.from_numpy(order),
    )


@dataclass(frozen=True)
class MaskPlan:
    """Which patches are to be masked, and which places the loss is to read.

    "none" masks nothing and lists every place (the paper's ablation without masking);
    `recover="all"` lists every place whatever is masked.
    """

    grid: tuple[int, int]
    name: str = "blockwise"
    ratio: float = 0.4
    count: int | None = None  # patches instead of a ratio
    minimum_block: int = 16
    exact: bool = False
    recover: Literal["masked", "all"] = "masked"
    # Kept, for a loader's process that is not forked knows of no masker that was registered here.
    masker: Masker | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name != NO_MASK:
            object.__setattr__(self, "masker", masker_named(self.name))
            target_count(self.grid, self.ratio, self.count)

    @property
    def capacity(self) -> int:
        """M, the length of every list of places."""
        if self.lists_all:
            return self.grid[0] * self.grid[1]
        return capacity(
            self.name, self.grid, self.ratio, self.minimum_block, self.exact, self.count
        )

    @property
    def lists_all(self) -> bool:
        """Whether the loss reads every place."""
        return self.recover == "all" or self.name == NO_MASK

    def draw(self, key: Key) -> NDArray[np.bool_]:
        """One sample's mask, (h, w), True = masked."""
        if self.masker is None:
            return np.zeros(self.grid, np.bool_)
        mask = self.masker(
            key.generator(_MASK),
            self.grid,
            ratio=self.ratio,
            minimum_block=self.minimum_block,
            exact=self.exact,
            count=self.count,
        )
        found = getattr(mask, "shape", None), getattr(mask, "dtype", type(mask))
        if found != (self.grid, np.bool_) or not mask.any():
            what = f"{found[1]} of shape {found[0]}" if found != (self.grid, np.bool_) else "empty"
            raise UserError(
                f"a mask of the masking {self.name!r} is {what}: it must be a numpy array of bool "
                f"of shape {self.grid} with at least one True"
            )
        return mask


def draw_masks(plan: MaskPlan, keys: list[Key]) -> Masks:
    """The masks of a batch: grid (B, h, w), index and weight (B, M)."""
    grids = np.stack([plan.draw(key) for key in keys])
    index, weight = place_list(np.ones_like(grids) if plan.lists_all else grids, plan.capacity)
    return Masks(torch.from_numpy(grids), torch.from_numpy(index), torch.from_numpy(weight))
