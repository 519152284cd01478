"""Cross-entropy a pixel, against the sum written out."""

import math

import pytest
import torch

from beit.objectives.pixels import pixel_cross_entropy


def test_the_loss_is_the_mean_over_counted_pixels() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.randint(3, (2, 4, 5)).to(torch.uint8)
    target[0, :2], target[1, 3, 4] = 255, 255
    loss, accuracy, count = pixel_cross_entropy(logits, target, 255)
    total, right, pixels = 0.0, 0, 0
    for image in range(2):
        for row in range(4):
            for column in range(5):
                label = int(target[image, row, column])
                if label == 255:
                    continue
                values = logits[image, :, row, column].tolist()
                total += math.log(sum(math.exp(v) for v in values)) - values[label]
                right += values.index(max(values)) == label
                pixels += 1
    assert count.item() == pixels == 29
    assert loss.item() == pytest.approx(total / pixels, rel=1e-6)
    assert accuracy.item() == pytest.approx(right / pixels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[0, :, :2].any() and logits.grad[0, :, 2:].all()


def test_logits_are_resized_bilinearly_and_targets_never() -> None:
    logits = torch.tensor([[0.0, 4.0]]).view(1, 1, 1, 2)
    logits = torch.cat([logits, torch.zeros_like(logits)], 1)  # (1, 2, 1, 2)
    target = torch.tensor([[[0, 1, 1, 0]]])
    expected = 0.0
    for value, label in zip((0.0, 1.0, 3.0, 4.0), (0, 1, 1, 0), strict=True):  # pixel centres
        expected += math.log(math.exp(value) + 1) - (value if label == 0 else 0.0)
    loss, accuracy, _ = pixel_cross_entropy(logits, target, 255)
    assert loss.item() == pytest.approx(expected / 4, rel=1e-6)
    assert accuracy.item() == 0.5  # a draw goes to the first class


def test_where_all_is_ignored_the_loss_is_zero_and_has_a_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss, accuracy, count = pixel_cross_entropy(logits, torch.full((1, 4, 4), 255), 255)
    assert (loss.item(), accuracy.item(), count.item()) == (0.0, 0.0, 1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and not logits.grad.any()


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits = torch.randn(1, 3, 2, 2)
    target = torch.randint(3, (1, 4, 4))
    half = logits.bfloat16()
    loss = pixel_cross_entropy(half, target, 255)[0]
    assert loss.dtype == torch.float32
    assert loss.item() == pixel_cross_entropy(half.float(), target, 255)[0].item()
