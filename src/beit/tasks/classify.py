"""Fine-tuning for classification: average the patches, LayerNorm, linear (paper, section 2.6)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.batch import ImageBatch
from beit.engine.protocol import StepContext, StepOutput
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead


class ClassifyTask(nn.Module):
    """A classifier over whole pictures: batch in, StepOutput out.

    Args:
        encoder: Fresh, or pre-trained.
        head: The classifier.
        label_smoothing: Share of the target that is spread over all classes.
        layer_decay: Rates fall by this factor from layer to layer towards the input; 1 for none.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: ClassifierHead,
        *,
        label_smoothing: float = 0.1,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.label_smoothing = label_smoothing
        self.layer_decay = layer_decay

    def forward(self, batch: ImageBatch, context: StepContext) -> StepOutput:
        """Cross-entropy and accuracy of a labelled batch."""
        assert batch.patch_view is not None and batch.label is not None
        depth = self.encoder.config.depth
        draws = None
        if self.training and self.encoder.config.drop_path:
            draws = context.uniform(2 * depth, "stochastic depth", batch.label.device)
        logits = self.logits(batch.patch_view, draws)
        loss = functional.cross_entropy(
            logits.float(), batch.label, label_smoothing=self.label_smoothing
        )
        accuracy = (logits.detach().argmax(-1) == batch.label).float().mean()
        weight = torch.full((), float(len(batch.label)), device=loss.device)
        return StepOutput(loss, weight, {"accuracy": accuracy})

    def logits(self, images: Tensor, path_draws: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) normalised floats to (B, classes)."""
        output: Tensor = self.head(self.encoder(images, path_draws=path_draws).tokens)
        return output

    def undecayed_parameters(self) -> frozenset[str]:
        """Positions and [S]."""
        return frozenset(f"encoder.{name}" for name in self.encoder.undecayed_parameters())

    def rate_scales(self) -> Mapping[str, float]:
        """Layer-wise rate decay: rate x decay^(L + 1 - depth), the head's rate whole."""
        top = self.encoder.config.depth + 1
        return {
            f"encoder.{name}": self.layer_decay ** (top - depth)
            for name, depth in self.encoder.layer_ids().items()
        }
