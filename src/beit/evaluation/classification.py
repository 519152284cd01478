"""How well a classifier does over a whole set: right, nearly right, and as sure as it should be.

Only counts and double-precision sums are kept, and ranks add them up, so the result is that of one
process whatever the number of ranks and however the set was cut. torchmetrics' classes were no
match for that: its means are kept in single precision and its calibration error keeps every
confidence; the tests hold these figures against them.
Legend: B pictures, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from beit.errors import UserError
from beit.evaluation.ranks import summed_over_ranks

BINS = 15  # of confidence
MOST_CONFUSED = 2_000  # classes; the confusion of ImageNet-22k would take 4 GB


@dataclass(frozen=True)
class ClassificationReport:
    """The result over a whole set; tensors lie on the CPU."""

    top1: float  # share of the pictures whose class was named
    top5: float  # share whose class was among the five likeliest (or all, with fewer classes)
    loss: float  # mean cross-entropy with the plain labels, in nats
    calibration_error: float  # mean gap between confidence and accuracy over 15 bins (l1)
    per_class: Tensor  # (C,) share of each class's pictures that were named; NaN without pictures
    per_class_pictures: Tensor  # (C,) int64
    confusion: Tensor | None  # (C, C) int64 pictures, rows the truth; None for very many classes
    pictures: int

    @property
    def mean_class_accuracy(self) -> float:
        """Accuracy with every class that has pictures counted alike."""
        return float(self.per_class.nanmean())

    def metrics(self) -> dict[str, float]:
        """The values by name, for a metrics file."""
        return {
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class_accuracy": self.mean_class_accuracy,
            "calibration_error": self.calibration_error,
            "pictures": float(self.pictures),
        }

    def whole(self, labels: Sequence[str]) -> dict[str, Any]:
        """Everything as plain data, class by class under (C,) names."""
        return {
            **self.metrics(),
            "pictures": self.pictures,
            "labels": list(labels),
            "per_class": [None if value != value else value for value in self.per_class.tolist()],
            "per_class_pictures": self.per_class_pictures.tolist(),
            "confusion": None if self.confusion is None else self.confusion.tolist(),
        }


class ClassificationScore:
    """Takes logits batch by batch, on their device, and never asks it anything before the end.

    Args:
        classes: C, two or more.
    """

    def __init__(self, classes: int) -> None:
        assert classes >= 2, "a classifier has two classes or more"
        self.classes = classes
        self._confuses = classes <= MOST_CONFUSED
        # (1 + 2 C + C * C,) int64: the top-5 hits, each class's pictures and hits, the confusion
        self._counts: Tensor | None = None
        self._sums: Tensor | None = None  # (1 + BINS,) float64: the loss, confidence less hits

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (B, C) of any float type.
            labels: (B,) int64 classes, none of them unlabelled (-1).
        """
        assert logits.shape == (len(labels), self.classes), "logits are (B, C)"
        scores = logits.float()
        if self._counts is None or self._sums is None:
            self._counts = self._no_counts(labels.device)
            self._sums = torch.zeros(1 + BINS, dtype=torch.float64, device=labels.device)
        likeliest = scores.topk(min(5, self.classes), dim=1).indices  # (B, 5)
        answer = likeliest[:, 0]
        near = (likeliest == labels[:, None]).any(1)
        one, right = torch.ones_like(labels), answer == labels
        self._counts[0] += near.sum()
        self._counts.index_add_(0, 1 + labels, one)
        self._counts.index_add_(0, 1 + self.classes + labels, right.long())
        if self._confuses:
            first = 1 + 2 * self.classes
            self._counts.index_add_(0, first + labels * self.classes + answer, one)
        losses = functional.cross_entropy(scores, labels, reduction="none")
        self._sums[0] += losses.sum(dtype=torch.float64)
        confidence = scores.double().softmax(1).amax(1).nan_to_num(0.0)
        bins = (confidence * BINS).ceil().long().clamp(1, BINS)  # (0, 1/15] is the first
        self._sums.index_add_(0, bins, confidence - right.double())

    def compute(self) -> ClassificationReport:
        """The result over all pictures of all ranks; may be asked again, and updated after.

        With a process group every rank must ask, also one that was given no picture.

        Raises:
            UserError: No picture was given.
        """
        counts, sums = self._over_ranks()
        parts = [1, self.classes, self.classes, len(counts) - 1 - 2 * self.classes]
        near, there, named, confusion = torch.split(counts, parts)
        pictures = int(there.sum())
        if not pictures:
            raise UserError("there is no picture to measure on: there are none that can be read")
        return ClassificationReport(
            top1=float(named.sum()) / pictures,
            top5=float(near) / pictures,
            loss=float(sums[0]) / pictures,
            calibration_error=float(sums[1:].abs().sum()) / pictures,
            per_class=named.double() / there,
            per_class_pictures=there,
            confusion=confusion.view(self.classes, -1) if self._confuses else None,
            pictures=pictures,
        )

    def _over_ranks(self) -> tuple[Tensor, Tensor]:
        """Counts and sums of all ranks, on the CPU."""
        counts, sums = self._counts, self._sums
        if counts is None or sums is None:
            counts = self._no_counts(torch.device("cpu"))
            sums = torch.zeros(1 + BINS, dtype=torch.float64)
        counts, sums = summed_over_ranks(counts, sums)
        return counts, sums

    def _no_counts(self, device: torch.device) -> Tensor:
        places = 1 + 2 * self.classes + (self.classes**2 if self._confuses else 0)
        return torch.zeros(places, dtype=torch.int64, device=device)
