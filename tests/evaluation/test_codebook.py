import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from beit.errors import UserError
from beit.evaluation.codebook import codebook_report, collapse_warning, hopeless
from beit.objectives.evidence_bound import picture_log_density
from beit.tokenizer.dvae import DiscreteVAE
from tokenizer.small_tokenizer import SMALL, small_tokenizer


@pytest.fixture
def model() -> DiscreteVAE:
    return small_tokenizer()


def test_equals_the_obvious_derivation(model: DiscreteVAE) -> None:
    images = torch.rand(7, 3, 16, 24)
    report = codebook_report(model, torch.split(images, 3))
    with torch.no_grad():
        logits = model.logits(images).permute(0, 2, 3, 1).reshape(-1, 11)
        posterior = logits.softmax(1)
        counts = functional.one_hot(logits.argmax(1), 11).sum(0) / len(logits)
        average = posterior.mean(0)
        soft = model.decode(model.logits(images).softmax(1)).clamp(0, 1)
    assert report.images == 7
    used = [share for share in counts.tolist() if share > 0]
    assert report.used_share == pytest.approx(len(used) / 11)
    perplexity = math.exp(-sum(share * math.log(share) for share in used))
    assert report.perplexity == pytest.approx(perplexity, rel=1e-4)
    assert report.perplexity_share == pytest.approx(perplexity / 11, rel=1e-4)
    entropy = -(posterior * posterior.log()).sum(1).mean().item()
    assert report.posterior_entropy == pytest.approx(entropy, rel=1e-4)
    assert report.kl == pytest.approx(math.log(11) - entropy, rel=1e-3)
    marginal = math.log(11) + (average * average.log()).sum().item()
    assert report.kl_marginal == pytest.approx(marginal, abs=1e-4)
    assert report.information == pytest.approx(report.kl - report.kl_marginal)
    hard = (model.reconstruct(images) - images).square().mean().item()
    assert report.mse_hard == pytest.approx(hard, rel=1e-4)
    assert report.mse_soft == pytest.approx((soft - images).square().mean().item(), rel=1e-4)
    assert report.mse_gap == pytest.approx(report.mse_soft - report.mse_hard)


def test_does_not_depend_on_the_batching(model: DiscreteVAE) -> None:
    images = torch.rand(8, 3, 16, 24)
    whole, parts = codebook_report(model, [images]), codebook_report(model, torch.split(images, 2))
    for name, value in whole.metrics().items():
        if name not in ("bound", "bits_per_dimension"):  # these draw codes
            assert parts.metrics()[name] == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_bound_of_a_sure_posterior_is_density_minus_log_vocabulary(model: DiscreteVAE) -> None:
    sure = DiscreteVAE(replace(SMALL, cosine_scale=1e6))
    sure.load_state_dict(model.state_dict())
    images = torch.rand(5, 3, 16, 24)
    report = codebook_report(sure, [images])
    with torch.no_grad():
        outputs = sure.decode_codes(sure.codes(images))
        density = picture_log_density(images, outputs, sure.log_variance).mean().item()
    expected = density - 6 * math.log(11)  # 2 x 3 places
    assert report.bound == pytest.approx(expected, rel=1e-4)
    bits = -expected / (3 * 16 * 24 * math.log(2)) + math.log2(255)
    assert report.bits_per_dimension == pytest.approx(bits, rel=1e-4)


def test_bound_of_an_unsure_posterior_is_over_drawn_codes(model: DiscreteVAE) -> None:
    """The likeliest codes alone would give another number, and no bound."""
    unsure = DiscreteVAE(replace(SMALL, cosine_scale=2.0))
    unsure.load_state_dict(model.state_dict())
    image = torch.rand(1, 3, 16, 24)
    images = image.expand(600, -1, -1, -1)
    report = codebook_report(unsure, torch.split(images, 100))
    with torch.no_grad():
        chances = unsure.logits(image)[0].flatten(1).softmax(0)  # (K, 2 x 3)
        codes = torch.multinomial(chances.T, 600, replacement=True).T.reshape(600, 2, 3)
        density = picture_log_density(images, unsure.decode_codes(codes), unsure.log_variance)
        likeliest = unsure.decode_codes(unsure.codes(image))
        other = picture_log_density(image, likeliest, unsure.log_variance).item()
    error = math.sqrt(2 * density.var().item() / 600)
    found = report.bound + 6 * report.kl  # 2 x 3 places
    assert abs(found - density.mean().item()) < 5 * error < abs(found - other)


def test_is_repeatable_and_leaves_the_default_generator_alone(model: DiscreteVAE) -> None:
    images = torch.rand(4, 3, 16, 24)
    before = torch.get_rng_state()
    assert codebook_report(model, [images]) == codebook_report(model, [images])
    assert torch.equal(before, torch.get_rng_state())


def test_an_empty_set_is_refused(model: DiscreteVAE) -> None:
    with pytest.raises(UserError, match="empty"):
        codebook_report(model, [])


def test_collapse_warning(model: DiscreteVAE) -> None:
    report = codebook_report(model, [torch.rand(2, 3, 16, 24)])
    warning = collapse_warning(replace(report, used_share=0.03, perplexity=9.0))
    assert warning is not None and "3.0%" in warning
    assert collapse_warning(replace(report, used_share=0.5)) is None


def test_hopeless_needs_several_dead_evaluations_after_the_warm_up() -> None:
    assert hopeless([2.0, 1.5, 1.1], 0.5)
    assert not hopeless([2.0, 1.5], 0.5)
    assert not hopeless([2.0, 9.0, 1.1], 0.5)
    assert hopeless([90.0, 2.0, 2.0, 2.0], 0.5)
    assert not hopeless([2.0, 1.5, 1.1], 0.05)
    assert not hopeless([], 1.0)
