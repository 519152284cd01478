"""`beit predict`: what a trained model says of pictures."""

import hashlib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.commands.assembly.build import choose_device, evaluation_workers
from beit.commands.assembly.stage import prepared_batches
from beit.commands.training.segment import logits_of, settings_of
from beit.commands.using.finished import Finished, read_finished
from beit.data.decoding.decode import BadPicture
from beit.data.sources.file_list import FileList, named_files
from beit.data.sources.path_names import printable
from beit.data.views.views import ViewSettings
from beit.engine.distribution import World
from beit.errors import UserError
from beit.evaluation.dense_inference import dense_classes
from beit.files import atomic_write_bytes, json_of_measured
from beit.nn.classifier import Classifier
from beit.nn.segmenter import Segmenter
from beit.recipes.models import DataRecipe
from beit.report.overlays import Colours, index_png, overlay

BATCH = 64
_LONGEST = 200  # bytes of a stem; a number, .overlay.png and the mark of a file unfinished follow

_FROM_ZERO = (
    "masks count classes from 0; in those trained on (reduce_zero_label) the same classes count "
    "from 1, and 0 is none"
)


@dataclass(frozen=True)
class Wishes:
    """What is wanted of predictions.

    Attributes:
        top: Classes a picture, the likeliest first.
        lines: JSON lines instead of a table.
        out: A folder for masks; segmenters need one.
        quiet: Print no results; what cannot be read is told all the same.
        keep: Return what was said; of millions of pictures it is much.
        dense: Changes to how a segmenter looks at whole pictures: mode, scales, flip.
    """

    top: int = 1
    lines: bool = False
    out: Path | None = None
    dense: Mapping[str, Any] = field(default_factory=dict)
    quiet: bool = False
    keep: bool = True


@dataclass(frozen=True)
class _Unreadable:
    """Notes the pictures that nothing is said of."""

    files: FileList
    bad: list[dict[str, str]]

    def add(self, replaced: Sequence[tuple[int, str]]) -> None:
        """Note pictures with the reason."""
        told = ({"picture": self.files.identity(i), "reason": why} for i, why in replaced)
        self.bad.extend(told)


def predict(
    model: str | Path,
    pictures: str | Path | Sequence[str | Path],
    wishes: Wishes | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Classify or segment pictures and print what was found, one line each.

    Args:
        model: A classifier or segmenter; see `read_finished`.
        pictures: Files, folders and patterns, or one of them. A picture named twice, also by way
            of a link, is looked at once.
        wishes: What is wanted; the likeliest class by default.
        device: Where to compute.

    Returns:
        How many were done, what was found of each under "predictions", as `--lines` prints it, and
        the unreadable ones with the reason.

    Raises:
        UserError: The model, a name or every picture is unusable.
    """
    wishes = wishes or Wishes()
    files = named_files([pictures] if isinstance(pictures, (str, Path)) else pictures)
    finished = read_finished(model)
    place = choose_device(device)
    finished.model.to(place)
    bad: list[dict[str, str]] = []
    predictor = _masks if isinstance(finished.model, Segmenter) else _labels
    done, kept = 0, []
    for told in predictor(finished, files, wishes, place, bad):
        done += 1
        kept += [told] if wishes.keep else []
    for entry in bad:
        print(f"{entry['picture']}: {entry['reason']}", file=sys.stderr)
    if not done:
        count = len(files)
        which = "the picture cannot" if count == 1 else f"none of the {count} pictures can"
        raise UserError(f"{which} be read")
    found = {"model": str(model), "pictures": done, "predictions": kept}
    return {**found, "unreadable": bad}


def _labels(
    finished: Finished,
    files: FileList,
    wishes: Wishes,
    device: torch.device,
    bad: list[dict[str, str]],
) -> Iterator[dict[str, Any]]:
    model = finished.model
    assert isinstance(model, Classifier)
    if wishes.out is not None or wishes.dense:
        raise UserError(
            "the model is a classifier: --out, --mode, --scales and --flip are for segmenters; "
            "leave them out"
        )
    if not 1 <= wishes.top <= model.classes:
        raise UserError(
            f"--top {wishes.top}: the model knows {model.classes} classes; ask for 1 to that"
        )
    width = min(60, max((len(files.identity(i)) for i in range(len(files))), default=0))
    for index, probabilities in _probabilities(model, files, finished.views, device, bad):
        for name, row in zip(map(files.identity, index), probabilities, strict=True):
            found = ranked(row, model, wishes.top)
            told = _told_labels(name, found)
            _say(wishes, told, _table_line(name, found, width))
            yield told


@torch.inference_mode()
def _masks(
    finished: Finished,
    files: FileList,
    wishes: Wishes,
    device: torch.device,
    bad: list[dict[str, str]],
) -> Iterator[dict[str, Any]]:
    """Write an index PNG and an overlay for each picture; names follow the pictures'."""
    model = finished.model
    assert isinstance(model, Segmenter)
    if wishes.out is None:
        raise UserError("a segmenter writes masks: name a folder for them by --out")
    settings = settings_of(model, finished.facts, **wishes.dense)
    palette = _palette(finished.facts)
    targets = _targets(files, wishes.out)
    try:
        wishes.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{wishes.out} cannot be a folder of masks ({error.strerror})") from error
    earlier = sum(mask.exists() for mask, _ in targets)
    if earlier:
        print(f"note: {earlier} masks in {wishes.out} are written over", file=sys.stderr)
    if finished.facts.get("reduce_zero_label"):
        print(f"note: {_FROM_ZERO}", file=sys.stderr)
    for index in range(len(files)):
        try:
            image = np.array(files.read(index))  # (H, W, 3)
        except BadPicture as error:
            _Unreadable(files, bad).add([(index, error.reason)])
            continue
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        classes = dense_classes(logits_of(model), pixels, settings, device).cpu().numpy()
        mask, shown = targets[index]
        drawn = io.BytesIO()
        overlay(image, classes, palette, class_names(model)).save(drawn, "PNG")
        atomic_write_bytes(shown, drawn.getvalue())  # first: a mask without one is not ours
        atomic_write_bytes(mask, index_png(classes, palette))
        shares = _shares(classes, model)
        told = _told_masks(files.identity(index), targets[index], shares)
        _say(wishes, told, _mask_line(mask, shares))
        yield told


def _targets(files: FileList, out: Path) -> list[tuple[Path, Path]]:
    """Where the mask and the overlay of each picture go.

    Raises:
        UserError: Something would be overwritten that is no mask of an earlier prediction.
    """
    taken: set[str] = set()
    stems = [_free_name(_short(Path(os.fsdecode(path)).stem), taken) for path in files.paths]
    targets = [(out / f"{stem}.png", out / f"{stem}.overlay.png") for stem in stems]
    given = {os.path.realpath(os.fsdecode(path)) for path in files.paths}
    for mask, shown in targets:
        pictures = [path for path in (mask, shown) if os.path.realpath(path) in given]
        if pictures or (mask.exists() and not shown.exists()):
            raise UserError(
                f"{(pictures or [mask])[0]} is a picture that its mask would overwrite; "
                "name another folder by --out"
            )
    return targets


def _palette(facts: Mapping[str, Any]) -> Colours | None:
    """The colours that a segmenter was trained with, if any were given."""
    stored = facts.get("palette")
    return None if stored is None else [(int(r), int(g), int(b)) for r, g, b in stored]


def _short(stem: str) -> str:
    """A stem that leaves room for what is put behind it: its beginning and a hash of it all."""
    name = os.fsencode(stem)
    if len(name) <= _LONGEST:
        return stem
    digest = hashlib.sha256(name).hexdigest()[:16]
    while len(os.fsencode(stem)) > _LONGEST - len(digest) - 1:
        stem = stem[:-1]  # by letters, not by bytes
    return f"{stem}-{digest}"


def _free_name(stem: str, taken: set[str]) -> str:
    """A name that no other picture's mask or overlay has: two folders may have namesakes."""
    name, number = stem, 1
    while taken & (files := {name.lower(), f"{name}.overlay".lower()}):
        number += 1
        name = f"{stem}-{number}"
    taken |= files
    return name


def class_names(model: Segmenter) -> tuple[str, ...]:
    """Names or numbers of the classes."""
    return model.labels or tuple(str(number) for number in range(model.classes))


def _shares(classes: NDArray[np.uint8], model: Segmenter) -> list[tuple[str, float]]:
    """The share of each class that is there, the largest first."""
    counts = np.bincount(classes.ravel(), minlength=model.classes) / classes.size
    names = class_names(model)
    return [(names[c], float(counts[c])) for c in np.argsort(-counts) if counts[c] > 0]


def _told_masks(
    name: str, files: tuple[Path, Path], shares: list[tuple[str, float]]
) -> dict[str, Any]:
    """What is told to a program of a segmented picture."""
    mask, shown = map(str, files)
    rounded = {label: round(share, 6) for label, share in shares}
    return {"picture": name, "mask": mask, "overlay": shown, "shares": rounded}


def _mask_line(mask: Path, shares: list[tuple[str, float]]) -> str:
    cells = "  ".join(f"{label} {share:.0%}" for label, share in shares[:5])
    return f"{printable(os.fsencode(mask))}  {cells}"


def _say(wishes: Wishes, told: Mapping[str, Any], line: str) -> None:
    if not wishes.quiet:
        print(json_of_measured(told) if wishes.lines else line)


def ranked(probabilities: Tensor, model: Classifier, top: int) -> list[tuple[str, float]]:
    """The likeliest classes of one picture with their probabilities; names or numbers."""
    values, places = probabilities.topk(top)
    names = model.labels or [str(number) for number in range(model.classes)]
    return [(names[p], v) for p, v in zip(places.tolist(), values.tolist(), strict=True)]


@torch.inference_mode()
def _probabilities(
    model: Classifier,
    files: FileList,
    views: ViewSettings,
    device: torch.device,
    bad: list[dict[str, str]],
) -> Iterator[tuple[list[int], Tensor]]:
    """Places and (B, classes) probabilities, batch by batch; the unreadable go to `bad`."""
    # One batch is there before other processes have begun.
    workers = evaluation_workers(DataRecipe(), World(), device) if len(files) > BATCH else 0
    unreadable = _Unreadable(files, bad)
    for batch in prepared_batches(
        files, views, batch_size=BATCH, device=device, log=unreadable, workers=workers
    ):
        assert batch.patch_view is not None
        yield batch.index.tolist(), model(batch.patch_view).float().softmax(-1).cpu()


def _told_labels(name: str, found: list[tuple[str, float]]) -> dict[str, Any]:
    """What is told to a program of a classified picture."""
    labels = [{"label": label, "probability": round(p, 6)} for label, p in found]
    return {"picture": name, "labels": labels}


def _table_line(name: str, found: list[tuple[str, float]], width: int) -> str:
    cells = "  ".join(f"{label} {probability:6.1%}" for label, probability in found)
    return f"{name:{width}}  {cells}"
