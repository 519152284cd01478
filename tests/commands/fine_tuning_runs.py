"""Fine-tunings as a person would start them, made small."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from commands.recipe_runs import Fields, flags

CLASSES = ("blue", "green", "red")
CLASSIFY: Fields = {
    "encoder.width": 16,
    "encoder.depth": 2,
    "encoder.heads": 2,
    "optim.batch": 12,
    "optim.base_batch": 12,
    "optim.steps": 6,
    "optim.warmup_steps": 1,
    "engine.save_every": 3,
    "engine.evaluate_every": 2,
}


def coloured(
    folder: Path, train: int = 8, val: int = 5, classes: tuple[str, ...] = CLASSES
) -> Path:
    """Pictures whose class is their colour: so many of each class in both splits."""
    generator = np.random.default_rng(3)
    for split, count in (("train", train), ("val", val)):
        for channel, name in enumerate(classes):
            home = folder / split / name
            home.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (20, 24, 3), dtype=np.uint8)
                pixels[..., channel % 3] += 120
                Image.fromarray(pixels).save(home / f"{number:03d}.png")
    return folder


def classifying(out: Path, data: object, init: object = "none", **fields: Any) -> list[str]:
    """The words of a tiny classification."""
    changed = {name.replace("__", "."): value for name, value in fields.items()}
    words = ["classify", "digits", "--data", data, "--out", out, "--init", init, "--json"]
    return [*map(str, words), *flags({**CLASSIFY, **changed})]


MASK_CLASSES = ("dark", "bright")
SEGMENT: Fields = {
    "encoder.width": 16,
    "encoder.depth": 2,
    "encoder.heads": 2,
    "decoder.channels": 16,
    "optim.batch": 4,
    "optim.base_batch": 4,
    "optim.steps": 6,
    "optim.warmup_steps": 1,
    "engine.save_every": 3,
    "engine.evaluate_every": 2,
}


def segmenting(out: Path, data: object, init: object = "none", **fields: Any) -> list[str]:
    """The words of a tiny segmentation."""
    changed = {name.replace("__", "."): value for name, value in fields.items()}
    words = ["segment", "digits", "--data", data, "--out", out, "--init", init, "--json"]
    return [*map(str, words), *flags({**SEGMENT, **changed})]


def halves(folder: Path, counts: tuple[int, int, int] = (6, 3, 2)) -> Path:
    """Pictures that are dark at the left and bright at the right, with the masks that say so."""
    generator = np.random.default_rng(5)
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            height, width = 34 + 3 * number, 40 + 5 * number
            edge = int(width * generator.uniform(0.3, 0.7))
            mask = np.zeros((height, width), np.uint8)
            mask[:, edge:] = 1
            pixels = generator.integers(0, 60, (height, width, 3)) + 180 * mask[..., None]
            mask[:2] = 255
            name = f"{number:03d}"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"images/{split}/{name}.png")
            Image.fromarray(mask).save(folder / f"annotations/{split}/{name}.png")
    (folder / "classes.txt").write_text("\n".join(MASK_CLASSES) + "\n")
    return folder
