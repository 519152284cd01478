"""Masked losses against slow sums over real places."""

import pytest
import torch

from beit.objectives.masked import masked_pixel_loss, masked_token_loss

WEIGHT = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
REAL = [(0, 0), (0, 1), (1, 0)]


def test_token_loss_is_the_mean_negative_log_probability_of_real_places() -> None:
    logits, targets = torch.randn(2, 3, 5), torch.randint(0, 5, (2, 3))
    loss, accuracy, total = masked_token_loss(logits, targets, WEIGHT)
    probabilities = logits.softmax(2)
    expected = [-probabilities[b, m, targets[b, m]].log() for b, m in REAL]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    right = [float(logits[b, m].argmax() == targets[b, m]) for b, m in REAL]
    assert accuracy.item() == pytest.approx(sum(right) / 3)
    assert total.item() == 3


def test_padding_has_no_influence_and_no_gradient() -> None:
    logits, targets = torch.randn(2, 3, 5), torch.randint(0, 5, (2, 3))
    other = torch.where(WEIGHT[..., None] > 0, logits, torch.randn_like(logits)).requires_grad_()
    loss, accuracy, _ = masked_token_loss(other, (targets + (WEIGHT == 0)) % 5, WEIGHT)
    expected, expected_accuracy, _ = masked_token_loss(logits, targets, WEIGHT)
    torch.testing.assert_close((loss, accuracy), (expected, expected_accuracy))
    loss.backward()  # type: ignore[no-untyped-call]
    assert other.grad is not None
    assert not other.grad[WEIGHT == 0].any() and other.grad[WEIGHT == 1].any()


def test_accuracy_of_right_and_wrong() -> None:
    targets = torch.tensor([[1, 2, 0], [3, 0, 0]])
    logits = torch.nn.functional.one_hot(targets, 5).float()
    assert masked_token_loss(logits, targets, WEIGHT)[1] == 1
    logits[0, 1] = torch.tensor([9.0, 0, 0, 0, 0])
    assert masked_token_loss(logits, targets, WEIGHT)[1].item() == pytest.approx(2 / 3)


def test_half_precision_logits_are_scored_in_single() -> None:
    logits, targets = (torch.randn(2, 3, 50) * 5).bfloat16(), torch.randint(0, 50, (2, 3))
    loss, _, _ = masked_token_loss(logits, targets, WEIGHT)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, masked_token_loss(logits.float(), targets, WEIGHT)[0])


def test_nothing_masked_is_nothing_lost() -> None:
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss, accuracy, total = masked_token_loss(
        logits, torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2)
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == accuracy == total == 0
    assert logits.grad is not None and not logits.grad.any()


def test_pixel_loss_is_the_mean_squared_error_of_real_places() -> None:
    predictions, targets = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    loss, total = masked_pixel_loss(predictions, targets, WEIGHT)
    expected = [(predictions[b, m] - targets[b, m]).square().mean() for b, m in REAL]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert total == 3
