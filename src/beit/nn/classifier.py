"""An encoder with a classifier on top: what fine-tuning trains (section 2.6 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead


class Classifier(nn.Module):
    """Pictures to logits over classes.

    Args:
        encoder: Fresh, or pre-trained.
        head: Pools the tokens, normalises, projects.
        labels: What the classes are called, in the order of the logits; empty when not known.

    Attributes:
        view: How pictures are cut, as the files say that it was read from; empty where none do.
    """

    def __init__(self, encoder: Encoder, head: ClassifierHead, labels: Sequence[str] = ()) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.labels = tuple(labels)
        self.view: dict[str, Any] = {}
        assert len(self.labels) in (0, self.classes), (len(self.labels), self.classes)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.head.output.out_features

    def forward(self, images: Tensor, path_draws: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            images: (B, 3, H, W) normalised floats of the encoder's size.
            path_draws: (B, 2 L) draws that decide stochastic depth; see `Encoder.forward`.

        Returns:
            (B, classes) logits.
        """
        logits: Tensor = self.head(self.encoder(images, path_draws=path_draws).tokens)
        return logits
