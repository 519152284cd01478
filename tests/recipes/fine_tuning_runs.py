"""Fine-tunings as a person would start them, made small."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recipes.recipe_runs import Fields, flags

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
