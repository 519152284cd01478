"""Train a discrete VAE on the relaxed evidence bound (arXiv:2106.08254, section 2.1.2 and eq. 2).

Legend: B images, K codes, (h, w) grid of N = h * w places, D = 3 * H * W pixel values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from beit.batch import ImageBatch, needed
from beit.engine.protocol import Cutting, StepContext, StepOutput
from beit.errors import UserError
from beit.objectives.evidence_bound import (
    UniformDivergence,
    code_counts,
    code_perplexity,
    cosine_ramp,
    gumbel_softmax,
    held_cosine,
    picture_log_density,
    uniform_divergence,
)
from beit.tokenizer.dvae import DiscreteVAE


@dataclass(frozen=True)
class TokenizeSettings:
    """Weights and schedules; shares are parts of the whole run.

    Attributes:
        kl_weight: Weight of KL(q(z|x) || u) in the bound; 1 is the bound itself, DALL-E takes 6.6.
        kl_warmup: Share over which it rises from 0.
        marginal_weight: Extra weight on KL(q̄ || u), the part of the KL that collapse shows in. In
            units of the loss a pixel value: 0.1 costs 0.1 a nat whatever the picture size.
            Departure: neither the paper nor DALL-E has this term; it is left out of every report of
            the bound. It is taken over a micro-batch, so accumulation makes it a little stricter.
        temperature: Of the Gumbel-softmax, at first.
        final_temperature: At the end of the run.
        temperature_hold: Share of the run at the first temperature.
        straight_through: Last share of the run in which the decoder sees one-hot codes.
    """

    kl_weight: float = 1.0
    kl_warmup: float = 0.02
    marginal_weight: float = 0.3
    temperature: float = 1.0
    final_temperature: float = 1 / 16
    temperature_hold: float = 0.1
    straight_through: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kl_warmup", "temperature_hold", "straight_through"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"tokenizer {name} is a share of the run: give a number in [0, 1].")
        for name in ("temperature", "final_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"tokenizer {name} must be above 0, got {getattr(self, name)}.")
        for name in ("kl_weight", "marginal_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(
                    f"tokenizer {name} must not be negative, got {getattr(self, name)}."
                )

    def temperature_at(self, progress: float) -> float:
        """The relaxation temperature at a share of the run."""
        return held_cosine(
            progress, self.temperature, self.final_temperature, self.temperature_hold
        )

    def kl_weight_at(self, progress: float) -> float:
        """The weight of the KL at a share of the run."""
        return cosine_ramp(progress, self.kl_weight, self.kl_warmup)

    def straight_through_at(self, progress: float) -> bool:
        """Whether the decoder sees one-hot codes at a share of the run."""
        return progress >= 1 - self.straight_through


class TokenizeTask(nn.Module):
    """One training step of a discrete VAE. The batch's `token_view` is (B, 3, H, W) in [0, 1]."""

    def __init__(self, model: DiscreteVAE, settings: TokenizeSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def undecayed_parameters(self) -> frozenset[str]:
        """Names of parameters without weight decay."""
        return frozenset(f"model.{name}" for name in self.model.undecayed_parameters())

    def forward(self, batch: ImageBatch, context: StepContext) -> StepOutput:
        """Loss: minus the relaxed bound a pixel value, plus the extra marginal term."""
        images = needed(batch.token_view, "token_view")
        progress = context.progress
        logits = self.model.logits(images)  # (B, K, h, w)
        weights = gumbel_softmax(
            logits,
            self.settings.temperature_at(progress),
            straight_through=self.settings.straight_through_at(progress),
        )
        outputs = self.model.decode(weights)  # (B, 3 or 6, H, W)
        log_density = picture_log_density(images, outputs, self.model.log_variance).mean()
        divergence = uniform_divergence(logits)
        loss = self._loss(log_density, divergence, progress, images[0].numel())
        squared = (self.model.mean_pixels(outputs.detach()) - images).square().mean()
        metrics = self._metrics(logits.detach(), divergence, progress)
        metrics |= {"mse": squared, "log_density": log_density.detach()}
        return StepOutput(loss, torch.full((), float(len(images)), device=images.device), metrics)

    def cutting(self) -> Cutting:
        """The marginal term is of a micro-batch's mean code, and the relaxation's noise its own."""
        return Cutting(changes="the tokenizer's marginal term is then of fewer pictures")

    def _loss(
        self, log_density: Tensor, divergence: UniformDivergence, progress: float, dimensions: int
    ) -> Tensor:
        height, width = self.model.grid
        kl = height * width * divergence.total  # nats a picture
        bound = log_density - self.settings.kl_weight_at(progress) * kl
        return -bound / dimensions + self.settings.marginal_weight * divergence.marginal

    def _metrics(
        self, logits: Tensor, divergence: UniformDivergence, progress: float
    ) -> dict[str, Tensor]:
        counts = code_counts(logits.argmax(1), self.model.vocabulary)
        temperature = self.settings.temperature_at(progress)
        return {
            "kl": divergence.total.detach(),  # nats a place
            "kl_marginal": divergence.marginal.detach(),
            "perplexity": code_perplexity(counts),  # of this micro-batch's codes
            "temperature": torch.full((), temperature, device=logits.device),
        }
