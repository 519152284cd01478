"""`beit evaluate`: a trained model measured on pictures whose answers are known, or masked."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from beit.commands.assembly.build import choose_device, evaluation_workers
from beit.commands.assembly.stage import EVALUATION_BATCH, prepared_batches
from beit.commands.training.segment import measured, settings_of
from beit.commands.using.finished import Finished, finished_of, read_whole
from beit.commands.using.masked_evaluation import is_pre_training
from beit.commands.using.masked_evaluation import measured as measured_at_masks
from beit.commands.using.prediction_table import prediction_table
from beit.data.pairs.pair_files import PairSplit
from beit.data.pairs.pairs import open_pairs
from beit.data.reading.bad_pictures import BadPictureTaker
from beit.data.sources.indexed import Split
from beit.data.sources.opening import Data, GivenData, Source, as_data, labels_of, open_source
from beit.engine.distribution import World, process_group
from beit.errors import UserError
from beit.evaluation.classification import ClassificationReport, ClassificationScore
from beit.files import atomic_write_text, json_of_measured
from beit.interop.hub import located
from beit.nn.classifier import Classifier
from beit.nn.segmenter import Segmenter
from beit.recipes.models import DataRecipe
from beit.report.tables import Table, text_table


def evaluate(
    model: str | Path,
    data: GivenData,
    *,
    split: str = "val",
    device: str | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    dense: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a model on pictures whose answers are known; every rank a share, numbers exact.

    A pre-training is measured by what it predicts at masked places, as in its validation rows.

    Args:
        model: A classifier or segmenter (see `read_finished`), or the run of a pre-training.
        data: Pictures, one folder a class (matched by name), or pictures with masks; for a
            pre-training any pictures.
        split: Which part of them: val, train, or test where there is one; all for classifiers and
            pre-trainings.
        device: Where to compute.
        out: A file for the whole result, as JSON.
        quiet: Print nothing.
        dense: For segmenters, changes to how they look at whole pictures: mode, scales, flip.
        changes: For pre-trainings, changes to the masks, such as {"masking.kind": "random"}.

    Raises:
        UserError: The model or the pictures are unusable, or a class is not known to the model.
    """
    place, data = choose_device(device), as_data(data)
    if out is not None:
        _refuse_unwritable(Path(out))
    with process_group(place.type) as world:
        path = located(model)
        if is_pre_training(path):
            _refuse_dense(dense)
            found, table = _predicted(path, changes or {}, data, split, world, place)
        else:
            finished = finished_of(*read_whole(path), model)
            if changes:
                raise UserError(f"--{next(iter(changes))} is for pre-trainings; leave it out")
            if isinstance(finished.model, Segmenter):
                found, table = _segmented(finished, data, split, world, place, dense or {})
            else:
                _refuse_dense(dense)
                found, table = _classified(finished, data, split, world, place)
    if not world.main:
        return {}
    result = {"model": str(model), "data": str(data), "split": split, **found}
    if not quiet:
        print(text_table(table))
    if out is not None:
        if Path(out).exists():
            print(f"note: {out} is written over", file=sys.stderr)
        atomic_write_text(Path(out), json_of_measured(result, indent=2) + "\n")
    return result


def _refuse_unwritable(out: Path) -> None:
    """See that a result can be kept before it is worked for."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "is a folder" if out.is_dir() else "would lie in a folder that is not there"
        raise UserError(f"{out} {what}: name a file for --out")
    if not os.access(out.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"{out} would lie in a folder that cannot be written to: name another")
    if out.exists() and not _is_result(out):
        raise UserError(f"{out} is there already and holds no evaluation: choose another --out")


def _is_result(file: Path) -> bool:
    """Whether a file holds what an earlier evaluation wrote."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"model", "data", "split"} <= set(found)


def _refuse_dense(dense: Mapping[str, Any] | None) -> None:
    if dense:
        raise UserError("--mode, --scales and --flip are for segmenters; leave them out")


def _predicted(
    folder: Path,
    changes: Mapping[str, Any],
    data: Data,
    split: str,
    world: World,
    device: torch.device,
) -> tuple[dict[str, Any], Table]:
    source = _opened(data, split)
    unreadable = Unreadable(source)
    found = measured_at_masks(folder, source, changes, world, device, unreadable)
    (count,) = world.sum_host([unreadable.count])
    found["unreadable"] = round(count)
    said = {name: value for name, value in found["masking"].items() if value is not None}
    masks = ", ".join(f"{name} {value}" for name, value in said.items())
    caption = f"{round(found['pictures'])} pictures, {round(found['places'])} places; {masks}"
    table = prediction_table(found, caption)
    assert table is not None
    return found, table


def _opened(data: Data, split: str) -> Source:
    if split not in get_args(Split):
        raise UserError(
            f"--split {split}: there are {', '.join(get_args(Split))}; for another "
            "folder give that folder itself and --split all"
        )
    source = open_source(data, cast(Split, split))
    if not len(source):
        raise UserError(
            f"{source.name} has no {split} part to measure on (sets of a few pictures are not "
            "split by themselves): name another --split, such as all"
        )
    return source


def _classified(
    finished: Finished, data: Data, split: str, world: World, device: torch.device
) -> tuple[dict[str, Any], Table]:
    source = _opened(data, split)
    unreadable = Unreadable(source)
    report = classified(finished, source, world, device, unreadable)
    model = finished.model
    names = model.labels or source.classes
    (count,) = world.sum_host([unreadable.count])
    found = {**report.whole(model.labels), "unreadable": round(count)}
    caption = (
        f"top-1 {report.top1:.2%}, top-5 {report.top5:.2%}, loss {report.loss:.4f}, calibration "
        f"error {report.calibration_error:.3f}, {report.pictures} pictures"
    )
    return found, class_table(found, names, caption)


def class_table(found: Mapping[str, Any], names: Sequence[str], caption: str) -> Table:
    """The accuracy of each class and its pictures."""
    rows = [
        [name, "–" if accuracy is None else f"{accuracy:.1%}", str(int(count))]
        for name, accuracy, count in zip(
            names, found["per_class"], found["per_class_pictures"], strict=True
        )
    ]
    return Table(["class", "right", "pictures"], rows, caption)


@dataclass
class Unreadable:
    """Names the pictures that a score is without."""

    source: Source
    count: int = 0

    def add(self, replaced: Sequence[tuple[int, str]]) -> None:
        """Name pictures with the reason."""
        for index, reason in replaced:
            print(f"{self.source.identity(index)}: {reason}; left out", file=sys.stderr)
            self.count += 1


def _segmented(
    finished: Finished,
    data: Data,
    split: str,
    world: World,
    device: torch.device,
    dense: Mapping[str, Any],
) -> tuple[dict[str, Any], Table]:
    model = finished.model
    assert isinstance(model, Segmenter)
    if split not in get_args(PairSplit):
        raise UserError(
            f"--split {split}: pictures with masks have {', '.join(get_args(PairSplit))}"
        )
    reduced = bool(finished.facts.get("reduce_zero_label", False))
    source = open_pairs(data, cast(PairSplit, split), reduce_zero_label=reduced)
    if model.labels and source.classes != model.labels:
        raise UserError(
            f"{source.name} has the classes {shortened(source.classes)}; the model knows "
            f"{shortened(model.labels)}"
        )
    if len(source.classes) != model.classes:
        raise UserError(
            f"{source.name} has {len(source.classes)} classes, the model {model.classes}"
        )
    model = model.to(device).eval()
    settings = settings_of(model, finished.facts, **dense)
    unreadable = Unreadable(source)
    workers = evaluation_workers(DataRecipe(), world, device)
    found = measured(model, source, settings, world, device, unreadable, workers)
    (count,) = world.sum_host([unreadable.count])
    seen = {"pictures": len(source) - round(count), "unreadable": round(count)}
    found |= {"labels": list(source.classes), **seen}
    return found, iou_table(found)


def iou_table(found: Mapping[str, Any]) -> Table:
    """IoU of each class that occurs, with the means and the number of the others in the caption."""
    values = list(zip(found["labels"], found["iou"], strict=True))
    rows = [[name, f"{value:.1%}"] for name, value in values if value is not None]
    caption = f"mean IoU {found['miou']:.2%}, pixel accuracy {found['pixel_accuracy']:.2%}"
    if absent := len(values) - len(rows):
        caption += f"; {absent} of {len(values)} classes are in no mask and no answer"
    return Table(["class", "IoU"], rows, caption)


@torch.inference_mode()
def classified(
    finished: Finished,
    source: Source,
    world: World,
    device: torch.device,
    unreadable: BadPictureTaker | None = None,
) -> ClassificationReport:
    """Classify every picture of a source once; who is told of those that cannot be read."""
    model = finished.model
    assert isinstance(model, Classifier)
    places = matched_labels(model, source)
    model = model.to(device).eval()
    score = ClassificationScore(model.classes)
    batches = prepared_batches(
        source,
        finished.views,
        batch_size=EVALUATION_BATCH,
        device=device,
        log=unreadable,
        share=(world.rank, world.size),
        workers=evaluation_workers(DataRecipe(), world, device),
    )
    for batch in batches:
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
