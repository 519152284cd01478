"""The device's share: jitter, flip and normalise a whole batch from the numbers drawn for it.

No loop over samples, no question to the device: each of the three rounds of jitter picks every
sample's own operation by `torch.where`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from beit.batch import ColourDraws, ImageBatch
from beit.pixels import normalise, per_colour

# B images, H x W pixels
_GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as torchvision and Pillow weigh colours


def prepare(batch: ImageBatch) -> ImageBatch:
    """Turn the host's uint8 views into what a task reads.

    The patch view becomes normalised floats, the token view floats in [0, 1]; both get the same
    jitter and flip, and the classes of the pixels the same flip. Afterwards the batch carries no
    draws, so preparing twice is an error.

    Departure: the reference jitters the full picture before it is cropped; here each view of the
    crop is jittered, so contrast turns round the crop's mean grey instead of the picture's.
    """
    patch_view, token_view, target = batch.patch_view, batch.token_view, batch.target
    if patch_view is not None:
        patch_view = normalise(augment(_unit(patch_view), batch.colour))
    if token_view is not None:
        token_view = augment(_unit(token_view), batch.colour)
    if target is not None and batch.colour is not None:
        target = _flipped(target, batch.colour.flip)
    return replace(batch, patch_view=patch_view, token_view=token_view, target=target, colour=None)


def augment(images: Tensor, draws: ColourDraws | None) -> Tensor:
    """Jitter and flip (B, 3, H, W) floats in [0, 1], each sample by its own draws."""
    if draws is None:
        return images
    factors = torch.stack([draws.brightness, draws.contrast, draws.saturation], dim=1)
    luma = per_colour(_GREY, images.device)
    for operation in draws.order.unbind(1):  # (B,) each
        factor = factors.gather(1, operation[:, None])[:, 0]
        images = _jitter_round(images, operation, factor, luma)
    return _flipped(images, draws.flip)


def _flipped(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror (B, ..., W) samples left to right where (B,) `flip` says so."""
    return torch.where(flip.view(-1, *(1,) * (images.dim() - 1)), images.flip(-1), images)


def _jitter_round(images: Tensor, operation: Tensor, factor: Tensor, luma: Tensor) -> Tensor:
    """One operation a sample: blend with black, with the mean grey, or with the grey picture."""
    grey = (images * luma).sum(1, keepdim=True)  # (B, 1, H, W)
    mean = grey.mean((2, 3), keepdim=True)
    operation, factor = operation[:, None, None, None], factor[:, None, None, None]
    away_from = torch.where(operation == 2, grey, torch.where(operation == 1, mean, 0.0))
    return (factor * images + (1 - factor) * away_from).clamp_(0, 1)


def _unit(images: Tensor) -> Tensor:
    assert images.dtype == torch.uint8, "the batch was prepared already"
    return images.contiguous().float() / 255  # the host stacks views in (B, H, W, 3) memory
