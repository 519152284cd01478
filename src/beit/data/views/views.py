"""One crop of a picture, seen twice: by the encoder and by the tokenizer.

The work is done on uint8 by torch's native kernels, in the memory order in which pictures are
decoded: with them crop and two resizes of a 500 x 375 picture took 0.4 ms on one core where Pillow
took 1.5 to 2.1 ms. Before torch 2.12 there is no native Lanczos, and Pillow does that one; the two
agree within two grey levels.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from beit.data.decoding.decode import pixels_of
from beit.data.views.draws import Box, Key, centre_box, crop_box, erased_box
from beit.data.views.rand_augment import rand_augment, rand_augmented
from beit.errors import UserError
from beit.pixels import PIXEL_MEAN, PIXEL_STD


@dataclass(frozen=True)
class ViewSettings:
    """What is made of each picture. Sizes are (height, width)."""

    patch_view: tuple[int, int] | None = None  # bicubic
    token_view: tuple[int, int] | None = None  # Lanczos
    scale: tuple[float, float] = (0.08, 1.0)  # share of the area a random crop takes
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of a random crop
    jitter: float = 0.4  # brightness, contrast and saturation alike
    flip: bool = True
    random: bool = True  # False: centre crop, no draws
    centre_share: float = 1.0  # of the sides, that the centre crop keeps
    auto_augment: str | None = None  # timm's words for RandAugment, of the patch view
    erasing: float = 0.0  # probability that a region of the patch view becomes noise

    def __post_init__(self) -> None:
        if self.patch_view is None and self.token_view is None:
            raise UserError("views need a patch view or a token view")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"the crop's scale must rise within (0, 1], not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"the crop's ratio must rise above 0, not {self.ratio}")
        if self.jitter < 0:
            raise UserError(f"jitter must not be negative, not {self.jitter}")
        if not 0 < self.centre_share <= 1:
            raise UserError(f"the centre's share must lie in (0, 1], not {self.centre_share}")
        self._refuse_patch_view_changes()

    def _refuse_patch_view_changes(self) -> None:
        """Refuse RandAugment and erasing that cannot be had."""
        if not 0 <= self.erasing <= 1:
            raise UserError(f"the probability of erasing must lie in [0, 1], not {self.erasing}")
        if self.auto_augment is None and not self.erasing:
            return
        if self.patch_view is None or self.token_view is not None:
            raise UserError(
                "RandAugment and erasing change the patch view alone: leave them off where a "
                "tokenizer is to see the same picture"
            )
        if self.auto_augment is not None:
            rand_augment(self.auto_augment, self.patch_view)

    @property
    def augments(self) -> bool:
        """Whether the device is to be given draws."""
        return self.random and (self.flip or self.jitter > 0)


def make_views(
    picture: Image.Image | Tensor, settings: ViewSettings, key: Key
) -> tuple[Tensor | None, Tensor | None]:
    """Crop a picture once and resize the crop to each view; augment the patch view.

    Departure: the reference flips before RandAugment and erases last, after normalising. Here flip
    and jitter are the device's and come after both; the noise is drawn in uint8.

    Args:
        picture: RGB, of Pillow's or (3, H, W) uint8, best in (H, W, 3) memory.
        settings: What is wanted.
        key: The sample; without randomness it is not used.

    Returns:
        The patch view and the token view, each (3, H, W) uint8 in (H, W, 3) memory, or None.
    """
    pixels = pixels_of(picture) if isinstance(picture, Image.Image) else picture
    crop = _cropped(pixels, _box(pixels, settings, key))
    patch_view, token_view = settings.patch_view, settings.token_view
    return (
        None
        if patch_view is None
        else _augmented(_resized(crop, patch_view, "bicubic"), settings, key),
        None if token_view is None else _lanczos(crop, token_view),
    )


def _cropped(pixels: Tensor, box: Box) -> Tensor:
    """A region, (3, h, w) in (h, w, 3) memory: the kernels work on it as it lies."""
    left, top, right, bottom = box
    return pixels.permute(1, 2, 0)[top:bottom, left:right].contiguous().permute(2, 0, 1)


def _augmented(view: Tensor, settings: ViewSettings, key: Key) -> Tensor:
    if not settings.random:
        return view
    if settings.auto_augment is not None:
        view = rand_augmented(view, settings.auto_augment, key.generator("rand-augment"))
    if settings.erasing:
        view = _erased(view, settings.erasing, key.generator("erasing"))
    return view


def _erased(view: Tensor, probability: float, generator: np.random.Generator) -> Tensor:
    """Fill a region with noise, normal and of the mean and deviation that normalising expects.

    Departure: what lies outside the range of pixels (3 % of timm's noise) is clipped to it.
    """
    height, width = view.shape[1:]
    box = erased_box(generator, (height, width), probability)
    if box is None:
        return view
    left, top, right, bottom = box
    normal = generator.standard_normal((bottom - top, right - left, 3), dtype=np.float32)
    mean, deviation = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
    noise = np.rint(255 * (normal * deviation + mean)).clip(0, 255)
    view = view.clone()
    view[:, top:bottom, left:right] = torch.from_numpy(noise.astype(np.uint8)).permute(2, 0, 1)
    return view


def _box(pixels: Tensor, settings: ViewSettings, key: Key) -> Box:
    size = (pixels.shape[1], pixels.shape[2])
    if settings.random:
        return crop_box(key.generator("crop"), size, settings.scale, settings.ratio)
    height, width = settings.patch_view or settings.token_view or size
    return centre_box(size, width / height, settings.centre_share)


def _resized(pixels: Tensor, size: tuple[int, int], how: Literal["bicubic", "lanczos"]) -> Tensor:
    """Resize (3, H, W) in (H, W, 3) memory, with antialiasing."""
    channels, height, width = pixels.shape
    if (height, width) == size:
        return pixels
    # A batch of one with such strides is known to be (H, W, 3) memory, and so is what comes out.
    strides = (channels * height * width, 1, channels * width, channels)
    images = pixels.as_strided((1, channels, height, width), strides)
    return interpolate(images, size, mode=how, align_corners=False, antialias=True)[0]


def _lanczos(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if _native_lanczos():
        return _resized(pixels, size, "lanczos")
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return pixels_of(image.resize((size[1], size[0]), Image.Resampling.LANCZOS))


@cache
def _native_lanczos() -> bool:
    """Whether this torch resizes by Lanczos."""
    pixels = torch.zeros(4, 4, 3, dtype=torch.uint8).permute(2, 0, 1)
    try:
        _resized(pixels, (2, 2), "lanczos")
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        return False
    return True
