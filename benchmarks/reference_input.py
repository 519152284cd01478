"""The reference's input path, written afresh from what is known of it (arXiv:2106.08254's code).

All of it happens on the host, picture by picture: the file is decoded by Pillow, colours are
jittered and the picture is flipped at full size, one crop is resized twice, both views become
float tensors, and the mask is drawn patch by patch. torch's `default_collate` makes the batch.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as classic

from beit.pixels import PIXEL_MEAN, PIXEL_STD

_LOGIT_LAPLACE = 0.1  # pixels are mapped to 0.8 x + 0.1 for DALL-E's tokenizer
_ATTEMPTS = 10

Box = tuple[int, int, int, int]  # left, top, right, bottom


class ReferenceInput:
    """From paths of files to a batch: (patch views, token views, masks), each stacked."""

    def __init__(
        self, size: int = 224, token_size: int = 112, grid: int = 14, masked: int = 75
    ) -> None:
        self.size, self.token_size, self.grid, self.masked = size, token_size, grid, masked
        self.jitter: Callable[[Image.Image], Image.Image] = transforms.ColorJitter(0.4, 0.4, 0.4)
        self.flip: Callable[[Image.Image], Image.Image] = transforms.RandomHorizontalFlip(0.5)

    def batch(self, paths: Sequence[str]) -> list[Tensor]:
        """The samples of these files, stacked."""
        collated: list[Tensor] = default_collate([self.sample(path) for path in paths])
        return collated

    def sample(self, path: str) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """One file's patch view, token view and mask."""
        image = self.flip(self.jitter(loaded(path)))
        patch_view, token_view = self.views(image, crop_box(image.size))
        patches = classic.normalize(classic.to_tensor(patch_view), PIXEL_MEAN, PIXEL_STD)
        tokens = (1 - 2 * _LOGIT_LAPLACE) * classic.to_tensor(token_view) + _LOGIT_LAPLACE
        return patches, tokens, blockwise_mask(self.grid, self.masked)

    def views(self, image: Image.Image, box: Box) -> tuple[Image.Image, Image.Image]:
        """A region as the encoder and as the tokenizer sees it."""
        left, top, right, bottom = box
        region = (top, left, bottom - top, right - left)
        sizes = [self.size] * 2, [self.token_size] * 2
        return (
            classic.resized_crop(image, *region, sizes[0], InterpolationMode.BICUBIC),
            classic.resized_crop(image, *region, sizes[1], InterpolationMode.LANCZOS),
        )


def loaded(path: str) -> Image.Image:
    """A file as an RGB picture."""
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def crop_box(size: tuple[int, int]) -> Box:
    """The region of a random resized crop of a picture of (width, height)."""
    width, height = size
    for _ in range(_ATTEMPTS):
        area = random.uniform(0.08, 1.0) * width * height
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            top, left = random.randint(0, height - h), random.randint(0, width - w)
            return left, top, left + w, top + h
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def blockwise_mask(grid: int, masked: int, smallest: int = 16) -> NDArray[np.int64]:
    """Blocks until `masked` patches of a square grid are hidden, or ten attempts in a row fail."""
    mask = np.zeros((grid, grid), dtype=np.int64)
    count = 0
    while count < masked:
        added = _add_block(mask, smallest, masked - count)
        if added == 0:
            break
        count += added
    return mask


def _add_block(mask: NDArray[np.int64], smallest: int, most: int) -> int:
    """Hide one more block, patch by patch; how many were new."""
    grid = len(mask)
    for _ in range(_ATTEMPTS):
        area = random.uniform(smallest, most)
        aspect = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width >= grid or height >= grid:
            continue
        top, left = random.randint(0, grid - height), random.randint(0, grid - width)
        hidden = int(mask[top : top + height, left : left + width].sum())
        if not 0 < height * width - hidden <= most:
            continue
        for row in range(top, top + height):
            for column in range(left, left + width):
                mask[row, column] = 1
        return height * width - hidden
    return 0


def seeded(seed: int) -> None:
    """Set the generators that the reference's draws come from."""
    random.seed(seed)
    torch.manual_seed(seed)
