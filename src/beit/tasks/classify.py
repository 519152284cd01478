"""Fine-tuning for classification: average the patches, LayerNorm, linear (paper, section 2.6)."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from beit.batch import ImageBatch, needed
from beit.engine.protocol import Cutting, StepContext, StepOutput
from beit.nn.classifier import Classifier
from beit.tasks.fine_tuning import dropout_cutting, layer_decay_scales, undecayed
from beit.tasks.mixing import MixSettings, mixed

SMOOTHED = MixSettings(label_smoothing=0.1)


class ClassifyTask(nn.Module):
    """A classifier over whole pictures: batch in, StepOutput out.

    Args:
        model: Encoder and head.
        mixing: Mixup, CutMix and label smoothing; the last also when nothing is mixed.
        layer_decay: Rates fall by this factor from layer to layer towards the input; 1 for none.
    """

    def __init__(
        self,
        model: Classifier,
        *,
        mixing: MixSettings = SMOOTHED,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.mixing = mixing
        self.layer_decay = layer_decay

    def forward(self, batch: ImageBatch, context: StepContext) -> StepOutput:
        """Cross-entropy and accuracy of a labelled batch."""
        images, label = needed(batch.patch_view, "patch_view"), needed(batch.label, "label")
        config = self.model.encoder.config
        targets, draws = label, None
        if self.training:
            images, targets = mixed(images, targets, self.model.classes, context, self.mixing)
        if self.training and config.drop_path:
            draws = context.uniform(2 * config.depth, "stochastic depth", label.device)
        logits = self.model(images, draws)
        loss = functional.cross_entropy(logits.float(), targets)
        accuracy = (logits.detach().argmax(-1) == label).float().mean()
        weight = torch.full((), float(len(label)), device=loss.device)
        return StepOutput(loss, weight, {"accuracy": accuracy})

    def undecayed_parameters(self) -> frozenset[str]:
        """Positions and [S]."""
        return undecayed(self.model.encoder)

    def rate_scales(self) -> Mapping[str, float]:
        """Layer-wise rate decay: rate x decay^(L + 1 - depth), the head's rate whole."""
        return layer_decay_scales(self.model.encoder, self.layer_decay)

    def cutting(self) -> Cutting:
        """Pictures are mixed in pairs."""
        mixes = bool(self.mixing.mixup or self.mixing.cutmix)
        return dropout_cutting(self.model.encoder, 2 if mixes else 1)
