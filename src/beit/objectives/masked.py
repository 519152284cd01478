"""Masked image modelling losses (section 2.3 of the paper): tokens, and pixels for the ablation."""

# B images, M listed places with padding, K codes, P pixels of a patch

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def masked_token_loss(
    logits: Tensor, targets: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy in nats a masked place: the mean of -log p(z_i | x^M), equation 3.

    Args:
        logits: (B, M, K), any float type; the loss is computed in float32.
        targets: (B, M) int64 visual tokens.
        weight: (B, M) 1 at masked places, 0 at padding.

    Returns:
        Mean loss, share of places whose likeliest code is the target (no gradient), and the total
        weight they are means over; all 0-d. The loss is 0 where nothing is masked.
    """
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
    )
    right = (logits.detach().argmax(2) == targets).float()
    loss, total = _weighted_mean(losses.view_as(weight), weight)
    return loss, _weighted_mean(right, weight)[0], total


def masked_pixel_loss(
    predictions: Tensor, targets: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean squared error a pixel of the masked patches, in float32.

    Args:
        predictions: (B, M, P).
        targets: (B, M, P) flattened patches, as `beit.nn.patches.patchify` orders them.
        weight: (B, M) 1 at masked places, 0 at padding.

    Returns:
        Mean loss and the total weight it is a mean over, both 0-d.
    """
    errors = (predictions.float() - targets.float()).square().mean(2)  # (B, M)
    return _weighted_mean(errors, weight)


def _weighted_mean(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = weight.sum()
    return (values * weight).sum() / total.clamp_min(1.0), total
