"""`beit evaluate`: a trained model measured on pictures whose answers are known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.data.packed import Split
from beit.data.sources import Source, labels_of, open_source
from beit.engine.distribution import World, process_group
from beit.errors import UserError
from beit.evaluation.classification import ClassificationReport, ClassificationScore
from beit.files import atomic_write_text
from beit.nn.classifier import Classifier
from beit.recipes.build import choose_device
from beit.recipes.finished import Finished, read_finished
from beit.recipes.stage import prepared_batches
from beit.recipes.train import EVALUATION_BATCH
from beit.report.tables import Table, text_table


def evaluate(
    spec: str | Path,
    data: str,
    *,
    split: Split = "val",
    device: str | None = None,
    out: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a classifier on labelled pictures; every rank a share, the numbers exact.

    Args:
        spec: A model; see `read_finished`.
        data: Pictures, one folder a class; classes are matched by name.
        split: Which part of them.
        device: Where to compute.
        out: A file for the whole result, as JSON.
        quiet: Print nothing.

    Raises:
        UserError: The model or the pictures are unusable, or a class is not known to the model.
    """
    place = choose_device(device)
    finished = read_finished(spec)
    source = open_source(data, split)
    with process_group(place.type) as world:
        report = classified(finished, source, world, place)
    if not world.main:
        return {}
    result = {"model": str(spec), "data": source.name, **described(report, finished.model.labels)}
    if out is not None:
        atomic_write_text(Path(out), json.dumps(result, indent=2) + "\n")
    if not quiet:
        _print(report, finished.model.labels or source.classes)
    return result


@torch.inference_mode()
def classified(
    finished: Finished, source: Source, world: World, device: torch.device
) -> ClassificationReport:
    """Classify every picture of a source once."""
    model = finished.model
    places = matched_labels(model, source)
    model = model.to(device).eval()
    score = ClassificationScore(model.classes)
    share = (world.rank, world.size)
    for batch in prepared_batches(
        source, finished.views, None, EVALUATION_BATCH, device, share=share
    ):
        assert batch.patch_view is not None and batch.label is not None
        score.update(model(batch.patch_view), places.to(device)[batch.label])
    return score.compute()


def matched_labels(model: Classifier, source: Source) -> Tensor:
    """The model's class for each class of a source, by name; (classes of the source,) int64.

    Raises:
        UserError: The source has no labels, or a class that the model does not know.
    """
    if not source.classes or bool((labels_of(source) < 0).any()):
        raise UserError(
            f"{source.name} has pictures without a label; put the pictures of each class into a "
            "folder of its name"
        )
    if not model.labels:
        if len(source.classes) != model.classes:
            raise UserError(
                f"{source.name} has {len(source.classes)} classes, and the model {model.classes}, "
                "whose names it does not know"
            )
        return torch.arange(model.classes)
    unknown = [name for name in source.classes if name not in model.labels]
    if unknown:
        raise UserError(
            f"{source.name} has a class {unknown[0]!r} that the model does not know; it knows "
            f"{shortened(model.labels)}"
        )
    return torch.tensor([model.labels.index(name) for name in source.classes])


def shortened(names: Sequence[str], most: int = 10) -> str:
    """A list of names, cut where it gets long."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def described(report: ClassificationReport, labels: Sequence[str]) -> dict[str, Any]:
    """A report as plain data."""
    return {
        **report.metrics(),
        "pictures": report.pictures,
        "labels": list(labels),
        "per_class": [None if value != value else value for value in report.per_class.tolist()],
        "confusion": report.confusion.tolist(),
    }


def _print(report: ClassificationReport, names: Sequence[str]) -> None:
    rows = [
        [name, f"{accuracy:.1%}" if accuracy == accuracy else "–", str(int(count))]
        for name, accuracy, count in zip(
            names, report.per_class.tolist(), report.confusion.sum(1).tolist(), strict=True
        )
    ]
    caption = (
        f"top-1 {report.top1:.2%}, top-5 {report.top5:.2%}, loss {report.loss:.4f}, calibration "
        f"error {report.calibration_error:.3f}, {report.pictures} pictures"
    )
    print(text_table(Table(["class", "right", "pictures"], rows, caption)))
