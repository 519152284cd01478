"""`beit probe`: what can be read off a model's frozen features after every block.

The pictures pass through the model once; the features are kept in half precision beside the
result, and read again as long as model, pictures and view are the same.
Legend: L blocks, N pictures, D width.
"""

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from beit.commands.assembly.build import choose_device, evaluation_workers
from beit.commands.assembly.initial import read_initial
from beit.commands.assembly.stage import prepared_batches
from beit.commands.using.evaluating import Unreadable
from beit.data.checking.labels import check_classes, choose_labels
from beit.data.sources.file_table import files_of
from beit.data.sources.opening import Data, GivenData, Source, as_data, labels_of, open_parts
from beit.data.views.views import ViewSettings
from beit.engine.distribution import World
from beit.errors import UserError
from beit.evaluation.feature_store import Origin, Parts, kept_features, weights_hash
from beit.evaluation.linear_probe import (
    METHODS,
    NEIGHBOURS,
    LayerFeatures,
    LinearSettings,
    MethodResult,
    ProbeResult,
    hold_out,
    probe_layers,
)
from beit.evaluation.neighbours import pooled_batches
from beit.files import atomic_write_bytes, atomic_write_text, json_of_measured
from beit.nn.encoder import Encoder
from beit.nn.resize import adapted
from beit.recipes.models import DataRecipe
from beit.report.depth import DepthCurve, depth_figure
from beit.report.page import Figure, RunReport, Section, write
from beit.report.tables import Table, text_table

BATCH = 100
_TITLES = {
    "neighbours": f"{NEIGHBOURS} nearest neighbours",
    "quick": "logistic regression",
    "paper": "linear, as in the paper",
}
_ABOUT = (
    "Features are the mean over patches of normalised tokens, frozen. The marked block of each "
    "method is the best on training pictures held out from it; the test pictures had no say."
)


@dataclass(frozen=True)
class _Subject:
    """What is probed, ready for the device."""

    encoder: Encoder
    device: torch.device
    model: str  # its hash
    notes: tuple[str, ...]


def probe(  # noqa: PLR0913 - the options of the command, all but two by keyword
    model: str | Path,
    data: GivenData,
    *,
    out: str | Path | None = None,
    method: str = "quick",
    labels: str = "all",
    seed: int = 0,
    device: str | None = None,
    image_size: tuple[int, int] | None = None,
    quiet: bool = False,
    settings: LinearSettings | None = None,
) -> dict[str, Any]:
    """Measure frozen features after every block, print a table, and return what was found.

    Args:
        model: Any model with an encoder; see `read_initial`.
        data: Labelled pictures with a training and a validation part, which is the test here.
        out: Takes probe.json, probe.html, probe.png and the features (for the next time).
        method: "quick", "paper", "neighbours" or "all".
        labels: How many labels of the training part are learned from; see `choose_labels`.
        seed: Decides which labels, which are held out, first weights and the order of pictures.
        device: Where to compute; the best there is by default.
        image_size: (height, width) to show the model, its own by default; positions are resized.
        quiet: Print nothing.
        settings: Of the method "paper".

    Raises:
        UserError: The pictures cannot be probed with, or there is no encoder.
    """
    methods, data, out = _methods(method), as_data(data), None if out is None else Path(out)
    if out is not None:
        _refuse_among_pictures(out, data)
    # Kept features have to be told from those of files that were edited since.
    train, test = _labelled(data, labels, seed, rescan=out is not None)
    subject = _subject(model, image_size, choose_device(device))
    _say(quiet, *subject.notes)
    with _folder(out) as folder:
        name = "train" if labels == "all" else f"train-{_slug(labels)}-seed-{seed}"
        kept = folder / "features"
        learned = _features(subject, train, kept / name, ("training", quiet))
        measured = _features(subject, test, kept / "test", ("test", quiet))
        result = probe_layers(
            learned, measured, methods, settings=settings, seed=seed, device=subject.device
        )
    asked = {"checkpoint": str(model), "data": str(data), "labels": labels, "seed": seed}
    found = asked | _described(result, subject, train, test)
    if "paper" in methods:
        used = settings or LinearSettings()
        found["settings"] = asdict(used) | {"rates": list(used.rates)}
    if not quiet:
        print(text_table(probe_table(result)), "", *sentences(result), sep="\n")
    if out is not None:
        _write(out, result, found)
    return found


def _methods(method: str) -> tuple[str, ...]:
    if method == "all":
        return tuple(METHODS)
    if method not in METHODS:
        raise UserError(f"--method {method} is no way to probe; use {', '.join(METHODS)} or all")
    return (method,)


def _labelled(data: Data, labels: str, seed: int, *, rescan: bool) -> tuple[Source, Source]:
    """Training and test pictures with classes; what cannot be probed with is refused."""
    train, test = open_parts(data, rescan=rescan)
    if not len(test):
        raise UserError(
            f"{data} has no validation pictures to test a probe on; put some into a folder `val` "
            "beside `train`"
        )
    check_classes(train, test)
    chosen = choose_labels(train, labels, seed)
    hold_out(labels_of(chosen), seed)  # refused now, and not after a pass over the pictures
    return chosen, test


def _subject(
    checkpoint: str | Path, image_size: tuple[int, int] | None, device: torch.device
) -> _Subject:
    given = read_initial(checkpoint)
    encoder, notes = given.encoder, given.notes
    if image_size is not None:
        encoder, changes = adapted(encoder, replace(encoder.config, image_size=image_size))
        notes = (*notes, *changes)
    return _Subject(encoder.to(device), device, weights_hash(encoder), notes)


def _refuse_among_pictures(out: Path, data: Data) -> None:
    """See that the curve, a picture itself, does not join the pictures that are probed with."""
    if not isinstance(data, str):
        return
    pictures = os.path.realpath(data)
    if os.path.isdir(pictures) and Path(pictures) in (real := out.resolve(), *real.parents):
        raise UserError(
            f"{out} is in the folder of the pictures, and probe.png would be one of them; choose "
            "another --out"
        )


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where features are kept: for good, or until the end."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="beit-probe-") as temporary:
            yield Path(temporary)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}); choose another --out") from error
    yield out


def _features(
    subject: _Subject, source: Source, folder: Path, saying: tuple[str, bool]
) -> LayerFeatures:
    """Features of all pictures of a source, and a line on where they are from."""
    config = subject.encoder.config
    view = f"centre crop, {config.image_size[0]}x{config.image_size[1]}, bicubic"
    origin = Origin(subject.model, _pictures(source), view)
    shape = (config.depth, len(source), config.width)
    kept = kept_features(folder, origin, shape, lambda: _computed(subject, source))
    lost = len(source) - len(kept.labels)
    left_out = f"; left out, because they cannot be read: {lost}" if lost else ""
    what, quiet = saying
    _say(quiet, f"features of {len(kept.labels)} {what} pictures {kept.note}{left_out}")
    return LayerFeatures(kept.features, kept.labels)


def _pictures(source: Source) -> str:
    """What tells a source's pictures from others, also from those that were edited in place."""
    table = files_of(source)
    if table is None:
        return source.fingerprint
    digest = hashlib.sha256(source.fingerprint.encode())
    for column in (table.sizes, table.times):  # an edit may leave the size as it was
        digest.update(column.tobytes())
    return digest.hexdigest()


def _computed(subject: _Subject, source: Source) -> Parts:
    device = subject.device
    workers = evaluation_workers(DataRecipe(), World(), device)
    views = ViewSettings(patch_view=subject.encoder.config.image_size, random=False)
    prepared = prepared_batches(
        source, views, batch_size=BATCH, device=device, log=Unreadable(source), workers=workers
    )
    return pooled_batches(subject.encoder, prepared, device, range(subject.encoder.config.depth))


def _described(
    result: ProbeResult, subject: _Subject, train: Source, test: Source
) -> dict[str, Any]:
    """The result as plain data; blocks are numbered from 1."""
    return {
        "model_sha256": subject.model,
        "image_size": list(subject.encoder.config.image_size),
        "notes": list(subject.notes),
        "classes": len(train.classes),
        "pictures": {"train": result.train, "held_out": result.held_out, "test": result.test},
        "fingerprints": {"train": train.fingerprint, "test": test.fingerprint},
        "most_frequent_class": result.most_frequent,
        "methods": {method.method: describe_method(method) for method in result.methods},
    }


def describe_method(result: MethodResult) -> dict[str, Any]:
    """One method as plain data; blocks are numbered from 1."""
    layers = [
        {"block": block, **{k: v for k, v in asdict(score).items() if v is not None}}
        for block, score in enumerate(result.layers, start=1)
    ]
    return {
        "best_block": result.best + 1,
        "held_out": result.layers[result.best].held_out,
        "test": result.layers[result.best].test,
        "last_block_test": result.layers[-1].test,
        "best_block_on_test": result.best_on_test + 1,
        "best_test": result.layers[result.best_on_test].test,
        "layers": layers,
    }


def probe_table(result: ProbeResult) -> Table:
    """Top-1 in percent after every block, held out and test, for each method."""
    header = ["after block"]
    for method in result.methods:
        header += [f"{method.method}, held out", "test"]
    rows = []
    for layer in range(len(result.methods[0].layers)):
        row = [str(layer + 1)]
        for method in result.methods:
            score = method.layers[layer]
            mark = "*" if layer == method.best else ""
            row += [f"{100 * score.held_out:.1f}{mark}", f"{100 * score.test:.1f}"]
        rows.append(row)
    caption = (
        f"Top-1 accuracy, %, {result.train} training pictures ({result.held_out} of them held out "
        f"to choose the block, marked *), {result.test} test pictures"
    )
    return Table(header, rows, caption)


def sentences(result: ProbeResult) -> list[str]:
    """The outcome of each method in a sentence."""
    depth = len(result.methods[0].layers)
    said = []
    for method in result.methods:
        best, top = method.best, method.best_on_test
        text = (
            f"{_TITLES[method.method]}: best after block {best + 1} of {depth}, "
            f"{method.layers[best].test:.1%} on the test pictures"
        )
        if best != depth - 1:
            text += f" (the last block: {method.layers[-1].test:.1%})"
        if method.layers[top].test > method.layers[best].test:
            seen = f"block {top + 1} with {method.layers[top].test:.1%}"
            text += f"; had the test pictures chosen, {seen}"
        said.append(text)
    return said


def _write(out: Path, result: ProbeResult, found: dict[str, Any]) -> None:
    """The page, the curve and the numbers; the numbers last."""
    curves = [
        DepthCurve(_TITLES[method.method], [score.test for score in method.layers], method.best)
        for method in result.methods
    ]
    picture = depth_figure(
        curves, "Accuracy on the test pictures", axis="top-1", floor=result.most_frequent
    )
    report = RunReport(
        title=f"Probe of {found['checkpoint']}",
        subtitle=f"pictures from {found['data']}, labels: {found['labels']}, seed {found['seed']}",
        summary=[
            (_TITLES[method.method], f"{method.layers[method.best].test:.1%}")
            for method in result.methods
        ],
        sections=[
            Section(
                "What can be read off after each block",
                [_ABOUT, *(f"{sentence}." for sentence in sentences(result))],
                [Figure(picture, "", "Accuracy over the depth of the model")],
                [probe_table(result)],
            )
        ],
        footnotes=found["notes"],
    )
    atomic_write_bytes(out / "probe.png", picture)
    write(report, out / "probe.html")
    atomic_write_text(out / "probe.json", json_of_measured(found, indent=2) + "\n")


def _slug(text: str) -> str:
    """An amount of labels as part of a folder's name."""
    return re.sub(r"[^0-9a-z.]+", "-", text.lower().replace("%", " percent")).strip("-")


def _say(quiet: bool, *lines: str) -> None:
    if not quiet:
        for line in lines:
            print(f"probe: {line}", file=sys.stderr, flush=True)
