"""Fine-tunings that are killed, diverge, or are asked for with data that will not do."""

import errno
import json
import shutil
import signal
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from beit import files
from beit.engine.logging import MetricsLog
from beit.files import sha256_of
from commands.fine_tuning_runs import classifying, coloured, halves, segmenting
from commands.recipe_runs import Blow, beit, in_child, rows_of

KILL = signal.SIGKILL
ENDS = ("model.safetensors", "metrics.jsonl", "evaluation.json", "best/model.safetensors")


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_killed_anywhere_it_ends_the_same(task: str, tmp_path: Path) -> None:
    """kill -9 in steps, inside the saving of the best model, and before the last files."""
    words, name = _words(task, tmp_path / "data"), {"classify": "Classify", "segment": "Segment"}
    run, log = tmp_path / "run", tmp_path / "log"
    blows = [
        Blow(KILL, f"{name[task]}Task", 1),
        Blow(KILL, file="best.tmp-*/config.json"),
        Blow(KILL, f"{name[task]}Task", 4),
        Blow(KILL, file="run/evaluation.json"),
        Blow(KILL, file="run/config.json"),
    ]
    for blow in blows:
        assert in_child([*words(run), "--resume"], log, blow) == -KILL, log.read_text()
    assert in_child([*words(run), "--resume"], log) == 0, log.read_text()
    assert beit(*words(tmp_path / "whole")).status == 0
    for end in ENDS:
        assert sha256_of(run / end) == sha256_of(tmp_path / "whole" / end), end
    assert [row["step"] for row in rows_of(run)] == list(range(1, 7))


def _words(task: str, data: Path) -> Callable[[Path], list[str]]:
    if task == "classify":
        coloured(data)
        return lambda out: classifying(out, data, encoder__drop_path=0.1, mixing__mixup=0.8)
    halves(data)
    return lambda out: segmenting(out, data, encoder__drop_path=0.1, decoder__dropout=0.1)


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_a_run_that_diverges_stops_and_keeps_a_finite_checkpoint(task: str, tmp_path: Path) -> None:
    words, run = _words(task, tmp_path / "data"), tmp_path / "run"
    rates = ["--optim.lr=1e4", "--optim.weight_decay=1e4", "--optim.base_batch=1"]
    fields = [*rates, "--optim.clip=null", "--engine.save_every=1"]
    outcome = beit(*words(run), *fields)
    assert outcome.status == 1 and "finite" in outcome.complaint, outcome.err
    assert "Traceback" not in outcome.err
    saved = sorted((run / "checkpoints").iterdir())
    tensors = load_file(saved[-1] / "model.safetensors")
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())
    assert list(run.glob("failure-step-*"))


def _photos(spoil: Callable[[Path], object], **fields: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        data = coloured(folder / "data")
        spoil(data)
        return classifying(folder / "run", data, **fields)

    return make


def _pairs(spoil: Callable[[Path], object], **fields: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        data = halves(folder / "data")
        spoil(data)
        return segmenting(folder / "run", data, **fields)

    return make


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _only(data: Path, kept: str, pictures: int = 99) -> None:
    for split in ("train", "val"):
        for home in (data / split).iterdir():
            if home.name != kept:
                shutil.rmtree(home)
            for file in sorted(home.glob("*.png"))[pictures:]:
                file.unlink()


def _flat(data: Path) -> None:
    for split in ("train", "val"):
        for number, file in enumerate(sorted((data / split).rglob("*.png"))):
            file.rename(data / split / f"{number}.png")
        for home in list((data / split).iterdir()):
            if home.is_dir():
                home.rmdir()


def _unvalidated(data: Path) -> None:
    """Eight pictures of two classes: too few for a part to be held out."""
    shutil.rmtree(data / "val")
    shutil.rmtree(data / "train" / "red")
    for file in sorted((data / "train").rglob("*.png"))[::2]:
        file.unlink()


def _mask(value: int | None = None, size: tuple[int, int] | None = None) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        file = data / "annotations" / "train" / "002.png"
        mask = np.array(Image.open(file)) if size is None else np.zeros(size, np.uint8)
        if value is not None:
            mask[5, 5] = value
        Image.fromarray(mask).save(file)

    return spoil


def _single(data: Path) -> None:
    for kind in ("images", "annotations"):
        for file in sorted((data / kind / "train").iterdir())[1:]:
            file.unlink()


def _started_from(**fields: Any) -> Callable[[Path], list[str]]:
    """A segmentation from a classifier."""

    def make(folder: Path) -> list[str]:
        first = folder / "first"
        assert beit(*classifying(first, coloured(folder / "photos"), optim__steps=1)).status == 0
        return segmenting(folder / "run", halves(folder / "data"), first, **fields)

    return make


def _of_one_class(data: Path) -> None:
    for file in (data / "annotations" / "train").iterdir():
        mask = np.array(Image.open(file))
        mask[mask != 255] = 1
        Image.fromarray(mask).save(file)


REFUSALS: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "empty class": (_photos(lambda data: _empty(data / "train" / "red")), ["red"]),
    "single class": (_photos(lambda data: _only(data, "red")), ["red"]),
    "one picture": (_photos(lambda data: _only(data, "red", 1)), ["one"]),
    "class only in train": (_photos(lambda data: shutil.rmtree(data / "val" / "red")), ["red"]),
    "class only in val": (_photos(lambda data: shutil.rmtree(data / "train" / "red")), ["red"]),
    "parts as classes": (
        _photos(lambda data: (data / "train").rename(data / "Testing")),
        ["Testing", "name those", "train and val"],
    ),
    "patience without validation": (
        _photos(lambda data: _unvalidated(data), patience=2),
        ["--patience", "val"],
    ),
    "unreadable mask": (
        _pairs(lambda data: (data / "annotations/train/002.png").write_bytes(b"no")),
        ["002", "--data.bad_share"],
    ),
    "unknown augmentation": (
        _photos(lambda data: data, views__auto_augment="rand-foo"),
        ["rand-foo"],
    ),
    "scales that change nothing": (
        _pairs(lambda data: data, inference__mode="whole", inference__scales=[0.5, 1]),
        ["mode slide"],
    ),
    "init of nothing": (
        lambda folder: classifying(folder / "run", coloured(folder), ""),
        ["empty"],
    ),
    "labels missing": (_photos(_flat), ["no classes", "folder of its name"]),
    "mask of another size": (_pairs(_mask(size=(9, 9))), ["002", "9"]),
    "unknown mask value": (_pairs(_mask(value=77)), ["77"]),
    "mask missing": (
        _pairs(lambda data: (data / "annotations" / "train" / "003.png").unlink()),
        ["003"],
    ),
    "picture missing": (
        _pairs(lambda data: (data / "images" / "val" / "001.png").unlink()),
        ["001"],
    ),
    "no masks": (_pairs(lambda data: shutil.rmtree(data / "annotations")), ["annotations"]),
    "one picture for a batch norm": (
        _pairs(lambda data: data, optim__accumulate=4, decoder__norm="batch"),
        ["batch norm", "--decoder.norm group"],
    ),
    "one class in the masks to train on": (
        _pairs(_of_one_class),
        ["images/train", "a single class (bright) of the 2"],
    ),
    "one mask to train on": (_pairs(_single), ["images/train", "a single picture"]),
    "another width": (_started_from(encoder__width=32), ["first", "its width is 16, not 32"]),
    "one class of pixels": (
        _pairs(lambda data: (data / "classes.txt").write_text("all\n")),
        ["class"],
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_in_one_sentence_before_anything_is_made(name: str, tmp_path: Path) -> None:
    make, words = REFUSALS[name]
    outcome = beit(*make(tmp_path))
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert all(word in outcome.complaint for word in words), outcome.complaint
    assert not (tmp_path / "run").exists()
    assert json.dumps(outcome.complaint)


def test_an_init_that_fits_only_in_part_is_told_in_a_line_and_in_full(tmp_path: Path) -> None:
    data = coloured(tmp_path / "data")
    assert beit(*classifying(tmp_path / "first", data)).status == 0
    two = coloured(tmp_path / "two", classes=("blue", "red"))
    outcome = beit(*classifying(tmp_path / "second", two, tmp_path / "first"))
    assert outcome.status == 0
    told = [line for line in outcome.err.splitlines() if line.startswith("classify: starting")]
    assert len(told) == 1 and "not used: 4 of its head" in told[0]
    record: dict[str, Any] = json.loads((tmp_path / "second" / "initial.json").read_text())
    tensors = load_file(tmp_path / "first" / "model.safetensors")
    assert sorted([*record["used"], *record["not_used"]]) == sorted(tensors)


def test_a_mask_that_was_edited_in_place_is_named(tmp_path: Path) -> None:
    data, run = halves(tmp_path / "data"), tmp_path / "run"
    assert beit(*segmenting(run, data)).status == 0
    file = data / "annotations" / "train" / "002.png"
    file.write_bytes(file.read_bytes() + b" ")
    refused = beit(*segmenting(run, data), "--resume")
    assert refused.status == 2 and "annotations/train/002.png was edited" in refused.complaint
    assert beit(*segmenting(run, data), "--resume", "--accept-changed-data").status == 0


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["best.tmp-*/model", "metrics", "result", "run/model", "config"])
def test_a_full_disk_is_told_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the run writes, not only inside its checkpoints."""
    data, run = coloured(tmp_path / "data"), tmp_path / "run"

    def writing(path: Path, data: bytes) -> None:
        if fnmatch(str(path), f"*{name}*"):
            with files.naming(path):
                raise OSError(*NO_SPACE.args)
        write(path, data)

    def flushing(log: MetricsLog, rows: object) -> None:
        with files.naming(run / "metrics.jsonl"):
            raise OSError(*NO_SPACE.args)

    write = files.write_synced
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_synced", writing)
        if name == "metrics":
            patch.setattr(MetricsLog, "write", flushing)
        outcome = beit(*classifying(run, data))
    assert outcome.status == 2 and "Traceback" not in outcome.err, outcome.err
    assert "cannot be written (No space left on device)" in outcome.complaint
    assert str(run) in outcome.complaint and "--resume" in outcome.complaint
    assert beit(*classifying(run, data), "--resume").status == 0
    assert not list(run.rglob("*.tmp-*"))


def test_a_model_that_its_last_step_ruined_is_not_kept(tmp_path: Path) -> None:
    data, run = coloured(tmp_path / "data"), tmp_path / "run"
    rates = {"optim__lr": 1e4, "optim__weight_decay": 1e4, "optim__base_batch": 1}
    fields = {**rates, "optim__steps": 1, "optim__warmup_steps": 0}
    outcome = beit(*classifying(run, data, **fields))
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.complaint.startswith("step 1, the last, left weights whose loss is not finite")
    for name in ("model.safetensors", "result.json", "best"):
        assert not (run / name).exists()


def test_what_is_measured_of_a_broken_model_is_still_json(tmp_path: Path) -> None:
    data, run, out = coloured(tmp_path / "data"), tmp_path / "run", tmp_path / "found.json"
    assert beit(*classifying(run, data, optim__steps=1)).status == 0
    weights = load_file(run / "model.safetensors")
    weights["head.output.bias"] = weights["head.output.bias"] * float("nan")
    save_file(weights, run / "model.safetensors")
    outcome = beit("evaluate", run, "--data", data, "--out", out, "--json")
    predicted = beit("predict", run, data / "val" / "red", "--lines")
    assert (outcome.status, predicted.status) == (0, 0)
    for text in (outcome.out.splitlines()[-1], out.read_text(), *predicted.out.splitlines()):
        assert "null" in text and json.loads(text, parse_constant=pytest.fail)
