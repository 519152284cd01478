"""How well pixels are classified, over a whole set of pictures.

Mean IoU as papers mean it: intersections and unions are summed over all pictures and divided then,
class by class; a mean of each picture's own IoU is another number.
Legend: H x W pixels, C classes.
"""

from typing import Any

import torch
from torch import Tensor

from beit.batch import IGNORED
from beit.errors import UserError
from beit.evaluation.ranks import summed_over_ranks


class SegmentationScore:
    """Takes pictures of any size one by one and keeps nothing but counts.

    Args:
        classes: C, two or more.
    """

    def __init__(self, classes: int) -> None:
        assert 2 <= classes <= IGNORED, "a segmenter has two classes or more"
        self.classes = classes
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Add a picture.

        Args:
            prediction: (H, W) a class for each pixel, of any integer type.
            mask: (H, W) the true classes; pixels of 255 count for nothing.
        """
        assert prediction.shape == mask.shape, "a prediction has its mask's size"
        truth, answer = mask.flatten().cpu(), prediction.flatten().cpu()
        counted = truth != IGNORED
        truth, answer = truth[counted].long(), answer[counted].long()
        if len(truth):
            most = max(int(truth.max()), int(answer.max()))
            assert most < self.classes, f"class {most} of {self.classes}"
        # Not torchmetrics' update: when algorithms have to be deterministic it compares every pixel
        # with each of the C * C places, which for 150 classes takes gigabytes a picture.
        counts = torch.bincount(truth * self.classes + answer, minlength=self.classes**2)
        self._confusion += counts.view(self.classes, self.classes)

    def confusion(self) -> Tensor:
        """Pixels of all ranks, (C, C) int64; rows are the truth, columns the answer.

        With a process group every rank must ask, also one that was given no picture.
        """
        return summed_over_ranks(self._confusion)[0]

    def compute(self) -> dict[str, Any]:
        """The result over all pictures of all ranks; may be asked again, and updated after.

        Returns:
            `miou`, the mean over classes that are in a mask or an answer; `pixel_accuracy`;
            `mean_class_accuracy`, over classes that are in a mask; `iou`, a list with a number a
            class, None where there is no pixel of it.

        Raises:
            UserError: No pixel was given that counts.
        """
        confusion = self.confusion()
        pixels = int(confusion.sum())
        if not pixels:
            raise UserError("there is no labelled pixel to evaluate on: every mask is empty")
        truth, answered = confusion.sum(1), confusion.sum(0)
        right = confusion.diagonal()
        present = truth + answered > 0
        iou = self._jaccard(confusion)
        return {
            "miou": float(iou[present].mean()),
            "pixel_accuracy": int(right.sum()) / pixels,
            "mean_class_accuracy": float((right.double() / truth)[truth > 0].mean()),
            "iou": [
                float(value) if there else None for value, there in zip(iou, present, strict=True)
            ],
        }

    def _jaccard(self, confusion: Tensor) -> Tensor:
        """(C,) torchmetrics' Jaccard index of each class."""
        from torchmetrics.classification import MulticlassJaccardIndex

        index = MulticlassJaccardIndex(
            self.classes, average="none", validate_args=False, sync_on_compute=False
        )
        nothing = torch.zeros(0, dtype=torch.int64)
        index.update(nothing, nothing)  # or it would warn that it has seen nothing
        index.confmat += confusion
        values: Tensor = index.compute()
        return values.double()
