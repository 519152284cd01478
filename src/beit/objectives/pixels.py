"""Cross-entropy a pixel, for segmentation (section 2.6 of the paper)."""

# B images, K classes, (h, w) the logits' size, (H, W) the target's

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def pixel_cross_entropy(
    logits: Tensor, target: Tensor, ignored: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy in nats a pixel, over the pixels that are not ignored.

    Logits are resized to the target bilinearly; a target is never resized. Computed in float32,
    on a flat list of pixels, because torch's kernel for lists repeats bitwise on a GPU and its
    kernel for maps does not.

    Args:
        logits: (B, K, h, w), any float type.
        target: (B, H, W) classes, any integer type.
        ignored: The value in the target that counts for nothing.

    Returns:
        Mean loss, share of pixels whose likeliest class is the target (no gradient), and how many
        pixels they are means over, at least 1; all 0-d. Loss and share are 0 where all is ignored.
    """
    size = (target.shape[1], target.shape[2])
    scores = functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    flat, labels = scores.movedim(1, -1).flatten(0, 2), target.flatten().long()
    counted = labels != ignored
    count = counted.sum().float().clamp_min(1.0)
    total = functional.cross_entropy(flat, labels, ignore_index=ignored, reduction="sum")
    right = ((flat.detach().argmax(1) == labels) & counted).sum() / count
    return total / count, right, count
