"""Mixup and CutMix: pictures blended or pasted two by two, and their labels with them.

arXiv:1710.09412 and arXiv:1905.04899, by the formulas of timm's `Mixup` in "batch" mode: one share
and one box for the whole step. They are drawn on the host, so the device is asked nothing.

Departure: timm mixes row i with row B - 1 - i; here row 2j and row 2j + 1 are mixed, so that pairs
stay together when a step is cut into micro-batches or spread over ranks.
Legend: B images, H x W pixels, C classes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from beit.engine.protocol import StepContext
from beit.errors import UserError


@dataclass(frozen=True)
class MixSettings:
    """What is mixed, and how often; by default nothing."""

    mixup: float = 0.0  # alpha of Beta(alpha, alpha), from which the share is drawn; 0 = no mixup
    cutmix: float = 0.0  # alpha of CutMix
    switch: float = 0.5  # how often CutMix is chosen where both are on
    probability: float = 1.0  # that a step is mixed at all
    label_smoothing: float = 0.0  # share of the target that is spread over all classes

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("switch", "probability", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in [0, 1], not {getattr(self, name)}")


class Box(NamedTuple):
    """A region of a picture in whole pixels; it may be empty."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """Pixels inside."""
        return (self.bottom - self.top) * (self.right - self.left)


class Mix(NamedTuple):
    """What is done to a step: each picture keeps `share` of itself and takes the rest."""

    share: float = 1.0
    box: Box | None = None  # None: all pixels are blended


def mixed(
    images: Tensor, labels: Tensor, classes: int, context: StepContext, settings: MixSettings
) -> tuple[Tensor, Tensor]:
    """Mix a micro-batch by the draw of its step.

    An odd last row stays as it is; with micro-batches of even length nothing depends on how the
    step is cut.

    Args:
        images: (B, 3, H, W) floats, left unchanged.
        labels: (B,) int64.
        classes: C.
        context: The step, which the draw is a function of.
        settings: What is mixed.

    Returns:
        The images, and their targets (B, C) float32, each row summing to 1.
    """
    height, width = images.shape[-2:]
    mix = draw_mix(context.generator("mixing"), (height, width), settings)
    targets = smoothed(labels, classes, settings.label_smoothing)
    if mix.share == 1:
        return images, targets
    partners = _swapped(images)
    if mix.box is None:
        images = images * mix.share + partners * (1 - mix.share)
    else:
        top, bottom, left, right = mix.box
        images = images.clone()
        images[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return images, targets * mix.share + _swapped(targets) * (1 - mix.share)


def draw_mix(generator: np.random.Generator, size: tuple[int, int], settings: MixSettings) -> Mix:
    """Draw what is done to a step.

    Args:
        generator: Where the numbers come from.
        size: Height and width of the pictures.
        settings: What is mixed.
    """
    applied, switched = generator.random(2).tolist()
    if applied >= settings.probability or not (settings.mixup or settings.cutmix):
        return Mix()
    cut = settings.cutmix > 0 and (settings.mixup == 0 or switched < settings.switch)
    alpha = settings.cutmix if cut else settings.mixup
    share = float(generator.beta(alpha, alpha))
    if not cut:
        return Mix(share)
    box = _box(generator, size, share)
    return Mix(1 - box.area / (size[0] * size[1]), box)  # the share that is really left


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """One-hot targets (B, C) float32 with a share of them spread over all classes.

    Args:
        labels: (B,) int64.
        classes: C.
        smoothing: The share.
    """
    off = smoothing / classes
    targets = torch.full((len(labels), classes), off, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + off)


def _box(generator: np.random.Generator, size: tuple[int, int], share: float) -> Box:
    """A box of the picture's shape round a uniform centre, cut at the edges."""
    ratio = math.sqrt(1 - share)
    height, width = int(size[0] * ratio), int(size[1] * ratio)
    y, x = int(generator.integers(size[0])), int(generator.integers(size[1]))
    return Box(
        max(0, y - height // 2),
        min(size[0], y + (height + 1) // 2),
        max(0, x - width // 2),
        min(size[1], x + (width + 1) // 2),
    )


def _swapped(rows: Tensor) -> Tensor:
    """Rows 2j and 2j + 1 in each other's place; an odd last row stays."""
    paired = len(rows) // 2 * 2
    pairs = rows[:paired].reshape(-1, 2, *rows.shape[1:]).flip(1).flatten(0, 1)
    return pairs if paired == len(rows) else torch.cat([pairs, rows[paired:]])
