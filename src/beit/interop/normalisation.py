"""Whose mean and deviation the pictures have that a model was fed with.

Every encoder here is fed pictures normalised with ImageNet's. One that was trained on others is
given a patch projection that undoes the difference, which is exact: both are linear in the colours.
"""

# C channels, D width

from typing import NamedTuple

import torch

from beit.errors import UserError
from beit.nn.encoder import Encoder
from beit.pixels import PIXEL_MEAN, PIXEL_STD


class Normalisation(NamedTuple):
    """A mean and a deviation for each colour, on pixels in [0, 1]."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


IMAGENET = Normalisation(PIXEL_MEAN, PIXEL_STD)
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMED = {"imagenet": IMAGENET, "half": HALF}


def normalisation_from(mean: object, deviation: object, where: str) -> Normalisation:
    """Check a mean and a deviation that a file gives.

    Raises:
        UserError: They are not numbers, or a deviation is not positive.
    """
    try:
        found = Normalisation(*(tuple(float(x) for x in side) for side in (mean, deviation)))  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} has an impossible mean or deviation ({error})") from error
    finite = all(abs(value) < 1e6 for side in found for value in side)  # false for nan
    if not finite or len(found.mean) != len(found.deviation) or min(found.deviation) <= 0:
        raise UserError(f"{where} has an impossible mean or deviation: {found}")
    return found


@torch.no_grad()
def fold(encoder: Encoder, fed: Normalisation) -> str | None:
    """Make an encoder that was fed with other colours right for ImageNet's, in place.

    Its patch projection is rescaled: for pictures x, W (x - m') / s' + b = W' (x - m) / s + b'.

    Args:
        encoder: Its patch projection changes.
        fed: What it was trained with.

    Returns:
        A phrase about it, or None when nothing was to be done.

    Raises:
        UserError: The encoder has not three colours.
    """
    if fed == IMAGENET:
        return None
    if encoder.config.channels != len(IMAGENET.mean) or len(fed.mean) != len(IMAGENET.mean):
        raise UserError(
            f"a model for pictures with {encoder.config.channels} channels and a mean of "
            f"{list(fed.mean)} cannot be fed with ImageNet's three colours"
        )
    mean, deviation = (torch.tensor(side, dtype=torch.float64) for side in IMAGENET)
    theirs, scale = (torch.tensor(side, dtype=torch.float64) for side in fed)
    projection = encoder.embeddings.projection
    weight = projection.weight.double().reshape(
        len(projection.weight), len(mean), -1
    )  # (D, C, patch pixels)
    shift = (weight.sum(2) * ((mean - theirs) / scale)).sum(1)
    projection.weight.copy_((weight * (deviation / scale)[:, None]).flatten(1))
    projection.bias.copy_(projection.bias.double() + shift)
    return (
        f"it was fed with mean {list(fed.mean)} and deviation {list(fed.deviation)}: the patch "
        "projection now takes ImageNet's instead, and gives the same"
    )
