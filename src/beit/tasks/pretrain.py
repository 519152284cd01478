"""Stage 2: predict what was at masked places (paper, sections 2.2 to 2.4).

Legend: B images, N patches, M listed places, K codes, P pixels of a patch times colours.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from beit.batch import ImageBatch, needed
from beit.engine.protocol import Cutting, StepContext, StepOutput
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.patches import patchify
from beit.objectives.evidence_bound import code_perplexity
from beit.objectives.masked import masked_pixel_loss, masked_token_loss
from beit.tasks.fine_tuning import dropout_cutting, undecayed
from beit.tokenizer.protocol import Tokenizer
from beit.tokenizer.reading import TokenReader

_VIEW = "token_view (the pictures as the tokenizer sees them) and no codes"


class Target(Protocol):
    """What is to be predicted, and how a prediction is scored."""

    def listed(self, batch: ImageBatch) -> Tensor:
        """The targets at the places that the masks list: (B, M, ...)."""
        ...

    @property
    def scoring(self) -> nn.Module:
        """How predictions are scored: (prediction, target, weight) to StepOutput; no state."""
        ...


class TokenScoring(nn.Module):
    """Cross-entropy in nats a place; `code_perplexity` is that of the batch's targets.

    A module, as `PixelScoring` is, so that the engine can have it compiled.
    """

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor) -> StepOutput:
        """Score (B, M, K) logits by (B, M) codes with (B, M) weights."""
        loss, accuracy, total = masked_token_loss(prediction, target, weight)
        counts = torch.zeros(prediction.shape[-1], device=target.device)
        counts = counts.scatter_add(0, target.flatten(), weight.flatten())
        perplexity = code_perplexity(counts)
        return StepOutput(loss, total, {"accuracy": accuracy, "code_perplexity": perplexity})


class PixelScoring(nn.Module):
    """Mean squared error a pixel."""

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor) -> StepOutput:
        """Score (B, M, P) pixels by those that are there, with (B, M) weights."""
        loss, total = masked_pixel_loss(prediction, target, weight)
        return StepOutput(loss, total, {})


class VisualTokens:
    """The tokenizer's most likely code of each patch (paper, equation 1).

    Args:
        tokenizer: Frozen; not asked where a batch brings its codes.
        listed_only: Ask it for the places that the loss reads and no others.
    """

    def __init__(self, tokenizer: Tokenizer | TokenReader, *, listed_only: bool = False) -> None:
        self.tokenizer = tokenizer
        self.listed_only = listed_only
        self.scoring = TokenScoring()

    def of(self, batch: ImageBatch) -> Tensor:
        """(B, N) int64 codes: those that the batch brings, or of its token view."""
        if batch.codes is not None:
            return batch.codes.flatten(1)
        return self.tokenizer.codes(needed(batch.token_view, _VIEW)).flatten(1)

    def listed(self, batch: ImageBatch) -> Tensor:
        """(B, M) int64 codes at the listed places."""
        masks = needed(batch.masks, "masks")
        if batch.codes is not None or not self.listed_only:
            return masks.gather(self.of(batch))
        assert isinstance(self.tokenizer, TokenReader), "only a TokenReader reads listed places"
        return self.tokenizer.codes_at(needed(batch.token_view, _VIEW), masks.index)


class Pixels:
    """The ablation without visual tokens: raw normalised pixels (paper, table 4)."""

    def __init__(self, patch_size: tuple[int, int]) -> None:
        self.patch_size = patch_size
        self.scoring = PixelScoring()

    def of(self, batch: ImageBatch) -> Tensor:
        """(B, N, P) normalised pixels."""
        return patchify(needed(batch.patch_view, "patch_view"), self.patch_size)

    def listed(self, batch: ImageBatch) -> Tensor:
        """(B, M, P) at the listed places."""
        return needed(batch.masks, "masks").gather(self.of(batch))


class PretrainTask(nn.Module):
    """Masked image modelling: batch in, StepOutput out.

    Args:
        model: Encoder and head; the whole of what is trained and saved.
        target: Visual tokens, or pixels. A tokenizer inside it is frozen and not part of the state.

    Which places are scored is the masks' affair: their list names masked places (the paper) or
    every place (its ablations).
    """

    def __init__(self, model: MaskedImageModel, target: Target) -> None:
        super().__init__()
        self.model = model
        self.target = target
        self.scoring = target.scoring

    def forward(self, batch: ImageBatch, context: StepContext) -> StepOutput:
        """Predict the targets of masked patches and score them."""
        images, masks = needed(batch.patch_view, "patch_view"), needed(batch.masks, "masks")
        target = self.target.listed(batch)  # (B, M, ...)
        draws = self._path_draws(images.device, context)
        prediction: Tensor = self.model(images, masks, draws)
        output: StepOutput = self.scoring(prediction, target, masks.weight)
        return output

    def undecayed_parameters(self) -> frozenset[str]:
        """Positions and [S] are not decayed; the mask embedding and bias tables are."""
        return undecayed(self.model.encoder)

    def cutting(self) -> Cutting:
        """Pictures do not act on each other."""
        return dropout_cutting(self.model.encoder)

    def _path_draws(self, device: torch.device, context: StepContext) -> Tensor | None:
        """Stochastic depth by sample: the same on any number of ranks."""
        config = self.model.encoder.config
        if not self.training or config.drop_path == 0.0:
            return None
        return context.uniform(2 * config.depth, "stochastic depth", device)
