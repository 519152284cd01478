import inspect
import math

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Categorical,
    Laplace,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    kl_divergence,
)

from beit.objectives.evidence_bound import (
    bits_per_dimension,
    code_counts,
    code_perplexity,
    cosine_ramp,
    entropy,
    gaussian_log_density,
    gumbel_softmax,
    held_cosine,
    logit_laplace_log_density,
    picture_log_density,
    uniform_divergence,
)
from beit.tokenizer.dvae import LOGIT_LAPLACE_EPSILON


def test_logit_laplace_equals_torchs_transformed_distribution() -> None:
    torch.manual_seed(0)
    images, mean, log_scale = torch.rand(50), torch.randn(50), torch.randn(50) * 0.3
    oracle = TransformedDistribution(
        Laplace(mean, log_scale.exp()),
        [SigmoidTransform(), AffineTransform(-0.1 / 0.8, 1 / 0.8)],
    )
    expected = oracle.log_prob(images)  # type: ignore[no-untyped-call]
    found = logit_laplace_log_density(images, mean, log_scale)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_squeeze_is_the_tokenizers() -> None:
    given = inspect.signature(logit_laplace_log_density).parameters["epsilon"].default
    assert given == LOGIT_LAPLACE_EPSILON


def test_logit_laplace_integrates_to_the_mass_inside_the_unit_interval() -> None:
    # x = 0 and 1 lie at logits -+ log 9; a sharp Laplace at 0 has nearly all its mass between.
    pixels = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    mean, log_scale = torch.zeros(1).double(), torch.full((1,), math.log(0.3)).double()
    density = logit_laplace_log_density(pixels, mean, log_scale).exp()
    inside = 1 - math.exp(-math.log(9) / 0.3)
    assert torch.trapezoid(density, pixels).item() == pytest.approx(inside, abs=1e-5)


def test_gaussian_equals_torchs() -> None:
    torch.manual_seed(0)
    images, mean = torch.rand(20), torch.randn(20)
    oracle = Normal(mean, math.sqrt(0.02)).log_prob(images)  # type: ignore[no-untyped-call]
    found = gaussian_log_density(images, mean, torch.tensor(0.02).log())
    torch.testing.assert_close(found, oracle)


def test_picture_density_sums_over_the_picture_and_reads_both_layouts() -> None:
    torch.manual_seed(0)
    images, outputs = torch.rand(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    laplace = picture_log_density(images, outputs, torch.zeros(()))
    expected = logit_laplace_log_density(images, outputs[:, :3], outputs[:, 3:]).sum((1, 2, 3))
    torch.testing.assert_close(laplace, expected)
    gaussian = picture_log_density(images, outputs[:, :3], torch.zeros(()))
    expected = gaussian_log_density(images, outputs[:, :3], torch.zeros(())).sum((1, 2, 3))
    torch.testing.assert_close(gaussian, expected)


def test_divergence_equals_torchs_and_splits_exactly() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 7, 2, 3)
    found = uniform_divergence(logits)
    posterior = Categorical(logits=logits.permute(0, 2, 3, 1))
    uniform = Categorical(probs=torch.full((7,), 1 / 7))
    average = Categorical(probs=posterior.probs.mean(dim=(0, 1, 2)))
    torch.testing.assert_close(found.total, kl_divergence(posterior, uniform).mean())
    torch.testing.assert_close(found.information, kl_divergence(posterior, average).mean())
    torch.testing.assert_close(found.marginal, kl_divergence(average, uniform))
    torch.testing.assert_close(found.total, found.information + found.marginal)


def test_divergence_does_not_change_with_batch_size() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 7, 2, 3)
    one, many = uniform_divergence(logits), uniform_divergence(logits.repeat(8, 1, 1, 1))
    for small, large in zip(one, many, strict=True):
        torch.testing.assert_close(small, large)


def test_divergence_gradient_does_not_change_with_batch_size() -> None:
    torch.manual_seed(0)
    scale = torch.ones((), requires_grad=True)
    logits = 3 * torch.randn(2, 7, 2, 3)
    (one,) = torch.autograd.grad(uniform_divergence(scale * logits).total, scale)
    (many,) = torch.autograd.grad(
        uniform_divergence(scale * logits.repeat(8, 1, 1, 1)).total, scale
    )
    torch.testing.assert_close(one, many)


def test_divergence_extremes() -> None:
    assert uniform_divergence(torch.zeros(1, 5, 2, 2)).total.item() == pytest.approx(0, abs=1e-6)
    collapsed = torch.zeros(3, 5, 2, 2)
    collapsed[:, 0] = 200
    found = uniform_divergence(collapsed)
    assert found.total.item() == pytest.approx(math.log(5))
    assert found.marginal.item() == pytest.approx(math.log(5))
    assert found.information.item() == pytest.approx(0, abs=1e-6)


def test_gumbel_noise_draws_from_the_categorical() -> None:
    torch.manual_seed(0)
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    logits = probabilities.log()[None, :, None, None].expand(20_000, 3, 1, 1)
    hard = gumbel_softmax(logits, 0.5, straight_through=True)
    torch.testing.assert_close(hard.mean((0, 2, 3)), probabilities, atol=0.015, rtol=0)


@pytest.mark.parametrize("straight_through", [False, True])
def test_gumbel_weights_sum_to_one_and_carry_gradients(straight_through: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 3, requires_grad=True)
    weights = gumbel_softmax(logits, 0.7, straight_through=straight_through)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 3, 3))
    weights.square().sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_straight_through_is_one_hot_forward_and_soft_backward() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 3, requires_grad=True)
    values = torch.randn(2, 5, 3, 3)
    torch.manual_seed(1)
    soft = gumbel_softmax(logits, 0.7)
    torch.manual_seed(1)
    hard = gumbel_softmax(logits, 0.7, straight_through=True)
    assert torch.allclose(hard.max(1).values, torch.ones(2, 3, 3))
    assert (hard.argmax(1) == soft.argmax(1)).all()
    (soft_gradient,) = torch.autograd.grad((soft * values).sum(), logits)
    (hard_gradient,) = torch.autograd.grad((hard * values).sum(), logits)
    torch.testing.assert_close(soft_gradient, hard_gradient)


def test_low_temperature_is_nearly_one_hot() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 5, 3, 3)
    sharpness = [gumbel_softmax(logits, t).max(1).values.mean().item() for t in (1.0, 1 / 16)]
    assert sharpness[0] < 0.8 < 0.95 < sharpness[1]


def test_entropy_allows_zeros() -> None:
    assert entropy(torch.tensor([0.5, 0.5, 0.0])).item() == pytest.approx(math.log(2))


def test_code_counts_and_perplexity() -> None:
    codes = torch.tensor([[0, 1], [1, 3]])
    counts = code_counts(codes, 5)
    assert counts.tolist() == [1, 2, 0, 1, 0]
    assert code_perplexity(torch.tensor([4.0, 4.0, 4.0, 0.0])).item() == pytest.approx(3)
    assert code_perplexity(torch.tensor([9.0, 0.0])).item() == pytest.approx(1)


def test_bits_per_dimension_of_uniform_noise_is_eight_bits() -> None:
    # A density of 1 on [0, 1] is 1/255 on the 8-bit scale.
    assert bits_per_dimension(0.0, 192) == pytest.approx(math.log2(255))
    assert bits_per_dimension(192 * math.log(2), 192) == pytest.approx(math.log2(255) - 1)


def test_held_cosine() -> None:
    values = [held_cosine(p / 100, 1.0, 1 / 16, 0.1) for p in range(101)]
    assert values[:11] == [1.0] * 11
    assert values[55] == pytest.approx((1 + 1 / 16) / 2)
    assert values[100] == pytest.approx(1 / 16)
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))
    assert held_cosine(2.0, 1.0, 0.5, 0.1) == pytest.approx(0.5)
    assert held_cosine(0.5, 1.0, 0.5, 1.0) == 1.0


def test_cosine_ramp() -> None:
    assert cosine_ramp(0.0, 6.6, 0.02) == 0
    assert cosine_ramp(0.01, 6.6, 0.02) == pytest.approx(3.3)
    assert cosine_ramp(0.02, 6.6, 0.02) == pytest.approx(6.6)
    assert cosine_ramp(0.9, 6.6, 0.02) == pytest.approx(6.6)
    assert cosine_ramp(0.0, 6.6, 0.0) == 6.6
