"""How encoders are fed: colours at ImageNet's mean 0 and deviation 1."""

import torch
from torch import Tensor

PIXEL_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels in [0, 1], per colour
PIXEL_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """Bring (..., 3, H, W) floats in [0, 1] to ImageNet's mean 0 and deviation 1."""
    mean, deviation = (per_colour(side, images.device) for side in (PIXEL_MEAN, PIXEL_STD))
    return (images - mean) / deviation


def unnormalise(images: Tensor) -> Tensor:
    """Bring normalised (..., 3, H, W) pictures back to [0, 1], clipped to it."""
    mean, deviation = (per_colour(side, images.device) for side in (PIXEL_MEAN, PIXEL_STD))
    return (images * deviation + mean).clamp(0, 1)


def per_colour(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """A constant on the device, (3, 1, 1), filled there: a copy would make the host wait for it.

    Made anew each time: torch.compile neither traces a cache nor needs one.
    """
    constant = torch.empty(3, 1, 1, device=device)
    for place, value in zip(constant, values, strict=True):
        place.fill_(value)
    return constant
