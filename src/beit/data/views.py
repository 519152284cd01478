"""One crop of a picture, seen twice: by the encoder and by the tokenizer.

The work is done on uint8 by torchvision's native kernels: with them crop and two resizes of a
500 x 375 picture took 0.4 ms on one core where Pillow took 1.5 to 2.1 ms. Before torchvision 0.27
there is no native Lanczos, and Pillow does that one; the two agree within two grey levels.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from beit.data.draws import Box, Key, centre_box, crop_box
from beit.errors import UserError


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

    @property
    def augments(self) -> bool:
        """Whether the device is to be given draws."""
        return self.random and (self.flip or self.jitter > 0)


def make_views(
    image: Image.Image, settings: ViewSettings, key: Key
) -> tuple[Tensor | None, Tensor | None]:
    """Crop a picture once and resize the crop to each view.

    Args:
        image: RGB.
        settings: What is wanted.
        key: The sample; without randomness it is not used.

    Returns:
        The patch view and the token view, each (3, H, W) uint8 or None.
    """
    crop = image.crop(_box(image, settings, key))
    # (H, W, 3) memory seen as (3, H, W): the kernels work on it as it lies.
    pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
    patch_view, token_view = settings.patch_view, settings.token_view
    return (
        None if patch_view is None else _bicubic(pixels, patch_view),
        None if token_view is None else _lanczos(pixels, crop, token_view),
    )


def _box(image: Image.Image, settings: ViewSettings, key: Key) -> Box:
    size = (image.height, image.width)
    if settings.random:
        return crop_box(key.generator("crop"), size, settings.scale, settings.ratio)
    height, width = settings.patch_view or settings.token_view or size
    return centre_box(size, width / height, settings.centre_share)


def _bicubic(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    resized: Tensor = functional.resize(
        pixels, list(size), InterpolationMode.BICUBIC, antialias=True
    )
    return resized


def _lanczos(pixels: Tensor, crop: Image.Image, size: tuple[int, int]) -> Tensor:
    if _native_lanczos():
        resized: Tensor = functional.resize(
            pixels, list(size), InterpolationMode.LANCZOS, antialias=True
        )
        return resized
    by_pillow = crop.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(by_pillow)).permute(2, 0, 1)


@cache
def _native_lanczos() -> bool:
    """Whether this torchvision resizes tensors by Lanczos."""
    try:
        functional.resize(
            torch.zeros(3, 4, 4, dtype=torch.uint8), [2, 2], InterpolationMode.LANCZOS
        )
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        return False
    return True
