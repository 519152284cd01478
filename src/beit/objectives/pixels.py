"""Cross-entropy a pixel, for segmentation (section 2.6 of the paper)."""

# B images, K classes, (h, w) the logits' size, (H, W) the target's

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def class_weights(pixels: Sequence[int], balance: float) -> Tensor:
    """Weights of the classes, larger for rare ones: share^-balance, scaled.

    Their mean over all pixels is 1, so the rate need not change. Neither the paper nor the
    reference weights classes; balance 1, with which every class counts for as much as any other,
    is near to the median frequency balancing of SegNet (arXiv:1511.00561).

    Args:
        pixels: How many pixels each class has in the masks; one that has none gets weight 1.
        balance: In [0, 1]; 0 gives weights of 1.

    Returns:
        (K,) float32.
    """
    counts = torch.tensor(pixels, dtype=torch.float64)
    seen = counts > 0
    shares = counts[seen] / counts.sum()
    weights = torch.ones_like(counts)
    weights[seen] = shares**-balance / (shares ** (1 - balance)).sum()
    return weights.float()


def pixel_cross_entropy(
    logits: Tensor, target: Tensor, ignored: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy in nats a pixel, over the pixels that are not ignored.

    Departure: the reference's library divides by all pixels of a rank's batch, those that are
    ignored among them, so that a crop with much padding weighs less.

    Logits are resized to the target bilinearly; a target is never resized. Computed in float32,
    on a flat list of pixels, because torch's kernel for lists repeats bitwise on a GPU and its
    kernel for maps does not.

    Args:
        logits: (B, K, h, w), any float type.
        target: (B, H, W) classes, any integer type.
        ignored: The value in the target that counts for nothing.
        weights: (K,) factors of the pixels' losses by class; None for 1.

    Returns:
        Mean loss (the sum of weighted losses by the number of pixels, whatever they weigh, so that
        parts of a batch can be joined by that number), share of pixels whose likeliest class is the
        target (no gradient), and how many pixels they are means over, at least 1; all 0-d. Loss
        and share are 0 where all is ignored.
    """
    size = (target.shape[1], target.shape[2])
    scores = functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    flat, labels = scores.movedim(1, -1).flatten(0, 2), target.flatten().long()
    counted = labels != ignored
    count = counted.sum().float().clamp_min(1.0)
    total = functional.cross_entropy(flat, labels, weights, ignore_index=ignored, reduction="sum")
    right = ((flat.detach().argmax(1) == labels) & counted).sum() / count
    return total / count, right, count
