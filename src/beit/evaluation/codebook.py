"""How well a tokenizer uses its codes, over a whole validation set (never per batch).

Legend: B images, K codes, (h, w) grid of N = h * w places, D = 3 * H * W pixel values.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from beit.errors import UserError
from beit.evaluation.ranks import summed_over_ranks
from beit.objectives.evidence_bound import (
    bits_per_dimension,
    code_counts,
    code_perplexity,
    entropy,
    picture_log_density,
)
from beit.tokenizer.dvae import DiscreteVAE


@dataclass(frozen=True)
class CodebookReport:
    """What was found; entropies and divergences in nats a place.

    Attributes:
        images: Pictures looked at.
        perplexity: exp(entropy) of the counts of hard codes, 1 to K.
        perplexity_share: The same over K.
        used_share: Share of the K codes that were some place's code.
        posterior_entropy: H(q|x), mean over places.
        kl: KL(q(z|x) || u), mean over places.
        kl_marginal: KL(q̄ || u), q̄ averaged over the whole set.
        information: I(x; z) = kl - kl_marginal.
        mse_hard: Mean squared error of pictures decoded from their codes, pixels in [0, 1].
        mse_soft: The same decoded from the posterior's weights.
        mse_gap: mse_soft - mse_hard: what the decoder does not know about unmixed codes, or gains.
        bound: Evidence bound in nats a picture (one noiseless-temperature draw of codes a picture),
            without any extra training term.
        bits_per_dimension: Its code length a pixel value on the 0..255 scale.
    """

    images: int
    perplexity: float
    perplexity_share: float
    used_share: float
    posterior_entropy: float
    kl: float
    kl_marginal: float
    information: float
    mse_hard: float
    mse_soft: float
    mse_gap: float
    bound: float
    bits_per_dimension: float

    def metrics(self) -> dict[str, float]:
        """The values by name, as they go to the metrics file."""
        return {name: float(value) for name, value in asdict(self).items()}


@dataclass
class _Sums:
    """Running sums in float64, on the device until the end."""

    counts: Tensor  # (K,)
    posterior: Tensor  # (K,)
    entropy: Tensor
    squared_hard: Tensor
    squared_soft: Tensor
    log_density: Tensor
    images: int = 0
    places: int = 0
    pixels: int = 0  # values, three a pixel

    @classmethod
    def none(cls, vocabulary: int, device: torch.device) -> "_Sums":
        """Of no pictures."""
        one, codes = (
            torch.zeros(size, dtype=torch.float64, device=device) for size in ((), vocabulary)
        )
        return cls(codes, codes.clone(), one, one, one, one)

    def over_ranks(self) -> "_Sums":
        """Those of all ranks, on the CPU."""
        each = (self.entropy, self.squared_hard, self.squared_soft, self.log_density)
        counted = [float(number) for number in (self.images, self.places, self.pixels)]
        whole = torch.tensor(counted, dtype=torch.float64)
        counts, posterior, parts, whole = summed_over_ranks(
            self.counts, self.posterior, torch.stack(each), whole
        )
        images, places, pixels = (round(number) for number in whole.tolist())
        shared, hard, soft, density = parts.unbind()
        return _Sums(counts, posterior, shared, hard, soft, density, images, places, pixels)


@torch.no_grad()
def codebook_report(model: DiscreteVAE, images: Iterable[Tensor], seed: int = 0) -> CodebookReport:
    """Run a tokenizer over a whole set.

    With a process group every rank must call this with its share of the set; only `bound` then
    depends on the number of ranks, by the noise of its draws.

    Args:
        model: The tokenizer, on the device of the pictures.
        images: Batches (B, 3, H, W) of floats in [0, 1].
        seed: Of the codes drawn for the evidence bound; another on each rank.

    Raises:
        UserError: There are no pictures.
    """
    device = model.log_variance.device
    generator = torch.Generator(device).manual_seed(seed)
    sums = _Sums.none(model.vocabulary, device)
    for batch in images:
        _add_batch(sums, model, batch, generator)
    sums = sums.over_ranks()
    if not sums.images:
        raise UserError("the validation set is empty: give at least one picture to measure on.")
    return _report(sums)


def _add_batch(sums: _Sums, model: DiscreteVAE, images: Tensor, generator: torch.Generator) -> None:
    logits = model.logits(images)
    log_posterior = functional.log_softmax(logits, dim=1)
    posterior = log_posterior.exp()
    codes = logits.argmax(1)
    sums.counts += code_counts(codes, model.vocabulary)
    sums.posterior += posterior.sum(dim=(0, 2, 3))
    sums.entropy = sums.entropy - _summed(posterior * log_posterior)
    hard = model.mean_pixels(model.decode_codes(codes))
    soft = model.mean_pixels(model.decode(posterior))
    sums.squared_hard = sums.squared_hard + _summed((hard - images).square())
    sums.squared_soft = sums.squared_soft + _summed((soft - images).square())
    noise = torch.empty_like(logits).exponential_(generator=generator)
    drawn = model.decode_codes((log_posterior - noise.log()).argmax(1))
    density = picture_log_density(images, drawn, model.log_variance)
    sums.log_density = sums.log_density + _summed(density)
    sums.images += len(images)
    sums.places += codes.numel()
    sums.pixels += images.numel()


def _summed(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.float64)


def _report(sums: _Sums) -> CodebookReport:
    vocabulary = len(sums.counts)
    posterior_entropy = float(sums.entropy) / sums.places
    kl = math.log(vocabulary) - posterior_entropy
    marginal = math.log(vocabulary) - float(entropy(sums.posterior / sums.places))
    mse_hard = float(sums.squared_hard) / sums.pixels
    mse_soft = float(sums.squared_soft) / sums.pixels
    perplexity = float(code_perplexity(sums.counts))
    bound = (float(sums.log_density) - kl * sums.places) / sums.images
    return CodebookReport(
        images=sums.images,
        perplexity=perplexity,
        perplexity_share=perplexity / vocabulary,
        used_share=int((sums.counts > 0).sum()) / vocabulary,
        posterior_entropy=posterior_entropy,
        kl=kl,
        kl_marginal=marginal,
        information=kl - marginal,
        mse_hard=mse_hard,
        mse_soft=mse_soft,
        mse_gap=mse_soft - mse_hard,
        bound=bound,
        bits_per_dimension=bits_per_dimension(bound, sums.pixels // sums.images),
    )


def collapse_warning(report: CodebookReport, least_used: float = 0.1) -> str | None:
    """A sentence when too few codes are in use, None when all is well."""
    if report.used_share >= least_used:
        return None
    return (
        f"the tokenizer is collapsing: {report.used_share:.1%} of its codes are in use "
        f"(perplexity {report.perplexity:.1f}); raise the marginal weight, lower the learning rate "
        "or choose a smaller vocabulary."
    )


def hopeless(
    perplexities: Sequence[float],
    progress: float,
    *,
    fewest: float = 4.0,
    patience: int = 3,
    warmup: float = 0.1,
) -> bool:
    """Whether a run should stop early: the last `patience` evaluations all saw a dead codebook.

    Args:
        perplexities: Of every evaluation so far that was made after the warm-up, oldest first.
        progress: Share of the run that is done.
        fewest: A perplexity below this is dead.
        patience: How many evaluations in a row must be dead.
        warmup: Share of the run in which no run is given up.
    """
    recent = perplexities[-patience:]
    return progress > warmup and len(recent) == patience and max(recent) < fewest
