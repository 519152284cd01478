"""Cross-entropy a pixel, against the sum written out."""

import math

import pytest
import torch

from beit.objectives.pixels import class_weights, pixel_cross_entropy


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


def test_balanced_weights_keep_the_mean_and_lift_what_is_rare() -> None:
    pixels = (9000, 900, 0, 100)
    shares = torch.tensor(pixels, dtype=torch.float32) / sum(pixels)
    assert class_weights(pixels, 0.0).tolist() == [1.0, 1.0, 1.0, 1.0]
    for balance in (0.25, 0.5, 1.0):
        weights = class_weights(pixels, balance)
        assert float((shares * weights).sum()) == pytest.approx(1.0, rel=1e-6)
        assert weights[2] == 1.0  # never seen
        assert float(weights[3] / weights[0]) == pytest.approx(90**balance, rel=1e-5)
    alike = (shares * class_weights(pixels, 1.0))[[0, 1, 3]]
    torch.testing.assert_close(alike, torch.full((3,), 1 / 3))


def test_weights_multiply_each_pixel_s_loss_and_not_what_it_is_divided_by() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    target[0, 0] = 255
    weights = torch.tensor([0.5, 2.0, 7.0])
    loss, accuracy, count = pixel_cross_entropy(logits, target, 255, weights)
    expected = 0.0
    for label, weight in enumerate(weights.tolist()):
        only = torch.where(target == label, target, 255)
        part, _, pixels = pixel_cross_entropy(logits, only, 255)
        expected += weight * float(part * pixels)
    assert count.item() == 35 and loss.item() == pytest.approx(expected / 35, rel=1e-5)
    assert accuracy == pixel_cross_entropy(logits, target, 255)[1]
