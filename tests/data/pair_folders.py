"""Small folders of pictures and masks in ADE20K's layout, made on the spot."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oracles.picture_zoo import scene

Mask = NDArray[np.uint8]


def some_mask(height: int, width: int, classes: int = 3, seed: int = 0) -> Mask:
    """Blocks of classes in which each class occurs, with a few ignored pixels."""
    small = np.random.default_rng(seed).integers(0, classes, (6, 6), dtype=np.uint8)
    small[0, :classes] = np.arange(classes)
    small[5, 5] = 255
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 6 // width
    return np.asarray(small[rows[:, None], columns])


def add_pair(
    root: Path,
    name: str,
    mask: Mask | None = None,
    *,
    split: str = "train",
    masks_in: str = "",
    picture: Image.Image | None = None,
    suffix: str = ".png",
    **options: Any,
) -> tuple[Path, Path]:
    """Write one picture and its mask; returns their paths."""
    mask = some_mask(20, 24, seed=len(name)) if mask is None else mask
    image = Image.fromarray(scene(*mask.shape)) if picture is None else picture
    paths = (
        root / "images" / split / f"{name}{suffix}",
        root / "annotations" / (masks_in or split) / f"{name}.png",
    )
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    image.save(paths[0], **options)
    Image.fromarray(mask).save(paths[1], **options)
    return paths


def add_split(root: Path, split: str, count: int = 4, masks_in: str = "") -> None:
    for number in range(count):
        mask = some_mask(20 + number, 24, seed=number)
        add_pair(root, f"p{number}", mask, split=split, masks_in=masks_in)


def pair_folder(root: Path, classes: int = 3) -> Path:
    """Train and val, with names for the classes."""
    add_split(root, "train")
    add_split(root, "val", 2)
    (root / "classes.txt").write_text("".join(f"kind {k}\n" for k in range(classes)))
    return root
