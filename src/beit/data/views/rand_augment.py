"""RandAugment (arXiv:1909.13719) as timm has it, with its chance keyed by the sample (law 1)."""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit.errors import UserError
from beit.pixels import PIXEL_MEAN

# timm itself passes over sections that it does not know, such as one misspelled.
_SECTION = r"(m\d+|n\d+|p[01](\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3a|3aw))"
_CONFIG = re.compile(rf"rand(-{_SECTION})*")

Transform = Callable[[Image.Image], Image.Image]


@lru_cache(maxsize=8)
def rand_augment(config: str, size: tuple[int, int]) -> Transform:
    """Make timm's transform of pictures, which draws from the global generators.

    Made once, before workers are started, so that they need not import timm again.

    Args:
        config: timm's words, "rand-m9-mstd0.5-inc1" in the recipes.
        size: Height and width of the pictures.

    Raises:
        UserError: The words are not timm's.
    """
    if _CONFIG.fullmatch(config) is None:
        raise UserError(
            f"augmentation {config!r} is none of RandAugment's: write timm's words for it, such as "
            "rand-m9-mstd0.5-inc1"
        )
    from timm.data.auto_augment import rand_augment_transform

    settings = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": tuple(round(255 * mean) for mean in PIXEL_MEAN),  # what turning leaves bare
        "interpolation": Image.Resampling.BICUBIC,
    }
    transform = rand_augment_transform(config, settings)
    for operation in transform.ops:
        # timm draws "no bits" now and then, which Pillow refuses from version 13 on.
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterized
    found: Transform = transform
    return found


def _posterized(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the highest bits of each channel; of none of them black is left."""
    if bits >= 8:
        return image
    kept = 0xFF << (8 - max(0, bits)) & 0xFF
    return image.point(lambda value: value & kept)


def rand_augmented(view: Tensor, config: str, generator: np.random.Generator) -> Tensor:
    """Change a view as the generator wants it.

    Args:
        view: (3, H, W) uint8, left unchanged.
        config: timm's words.
        generator: The sample's own.
    """
    height, width = view.shape[1:]
    transform = rand_augment(config, (height, width))
    image = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
    with _global_chance(generator):
        image = transform(image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@contextmanager
def _global_chance(generator: np.random.Generator) -> Iterator[None]:
    """Let Python's and NumPy's global draws be the generator's inside, and as before outside."""
    words = generator.integers(2**32, size=8, dtype=np.uint32)
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:])
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
