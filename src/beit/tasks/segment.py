"""Fine-tuning for segmentation: a class for each pixel (paper, section 2.6)."""

# B images, (H, W) pixels, L depth

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from beit.batch import IGNORED, ImageBatch, needed
from beit.engine.protocol import Cutting, StepContext, StepOutput
from beit.nn.segmenter import Segmenter
from beit.objectives.pixels import pixel_cross_entropy
from beit.tasks.fine_tuning import dropout_cutting, layer_decay_scales, undecayed


class SegmentTask(nn.Module):
    """A segmenter over crops: batch in, StepOutput out.

    What no logit depends on (the mask embedding, blocks after the last that is read) is frozen, so
    that every trained parameter has a gradient, which several ranks ask for.

    Departure: dropout is drawn by row, so that ranks and accumulation change nothing.

    Args:
        model: Encoder and decoder.
        ignore_index: The class of pixels that count for nothing.
        auxiliary_weight: Of the auxiliary head's loss, where there is one; 0.4 in the reference.
        layer_decay: Rates fall by this factor from layer to layer towards the input; 1 for none.
        class_weights: (K,) factors of the pixels' losses by class; None for 1.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: Segmenter,
        *,
        ignore_index: int = IGNORED,
        auxiliary_weight: float = 0.4,
        layer_decay: float = 1.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.ignore_index = ignore_index
        self.auxiliary_weight = auxiliary_weight
        self.layer_decay = layer_decay
        self.register_buffer("class_weights", class_weights, persistent=False)
        unread = model.unread_parameters()
        for name, parameter in model.named_parameters():
            if name in unread:
                parameter.requires_grad_(False)

    def forward(self, batch: ImageBatch, context: StepContext) -> StepOutput:
        """Cross-entropy and accuracy of the pixels that are not ignored.

        The patch view is (B, 3, H, W) normalised floats, the target (B, H, W) classes.
        """
        images, target = needed(batch.patch_view, "patch_view"), needed(batch.target, "target")
        output = self.model(images, *self._draws(context, images.device))
        loss, accuracy, count = self._cross_entropy(output.logits, target)
        if output.auxiliary is not None:
            second, _, _ = self._cross_entropy(output.auxiliary, target)
            loss = loss + self.auxiliary_weight * second
        return StepOutput(loss, count, {"pixel_accuracy": accuracy})

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return pixel_cross_entropy(logits, target, self.ignore_index, self.class_weights)

    def undecayed_parameters(self) -> frozenset[str]:
        """Positions and [S]."""
        return undecayed(self.model.encoder)

    def rate_scales(self) -> Mapping[str, float]:
        """Layer-wise rate decay: rate x decay^(L + 1 - depth), the decoders' rate whole."""
        return layer_decay_scales(self.model.encoder, self.layer_decay)

    def cutting(self) -> Cutting:
        """Batch norm takes its statistics over a micro-batch, of two pictures to be safe."""
        if self.model.config.norm == "batch":
            return Cutting(2, "batch norm then takes its statistics over fewer pictures")
        return dropout_cutting(self.model.encoder)

    def _draws(self, context: StepContext, device: torch.device) -> tuple[Tensor | None, ...]:
        """Stochastic depth and the decoders' dropout by sample: the same on any number of ranks."""
        config, paths, channels = self.model.encoder.config, None, None
        if self.training and config.drop_path:
            paths = context.uniform(2 * config.depth, "stochastic depth", device)
        if self.training and self.model.config.dropout:
            channels = context.uniform(self.model.channel_draws, "decoder dropout", device)
        return paths, channels
