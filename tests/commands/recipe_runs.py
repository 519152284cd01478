"""Whole runs as a person would start them, made small: a few steps of a tiny model."""

import io
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beit import files
from beit.cli import main
from beit.commands.assembly import saved_models
from beit.commands.training import pretrain
from beit.engine.step import StepRecord, TrainingStep
from beit.files import sha256_of
from beit.tokenizer import storage

assert pretrain  # imported for the children's sake
Fields = Mapping[str, Any]

TOKENIZER: Fields = {
    "model.vocabulary": 8,
    "model.code_width": 4,
    "optim.batch": 48,
    "optim.steps": 4,
    "optim.warmup_steps": 1,
    "data.workers": 0,
}
PRETRAIN: Fields = {
    "encoder.width": 16,
    "encoder.depth": 2,
    "encoder.heads": 2,
    "optim.batch": 48,
    "optim.steps": 4,
    "optim.warmup_steps": 1,
    "data.workers": 0,
    **{f"tokenizer.{name}": value for name, value in TOKENIZER.items()},
}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The last line of standard output, which `--json` promises to be one object."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    @property
    def complaint(self) -> str:
        """The last line of standard error, without the program's name."""
        return self.err.splitlines()[-1].removeprefix("beit: ")


def beit(*arguments: object, **fields: Any) -> Outcome:
    """Run a command in this process; fields are recipe overrides with `__` for dots."""
    out, err = io.StringIO(), io.StringIO()
    words = [str(argument) for argument in arguments]
    with redirect_stdout(out), redirect_stderr(err):
        status = main([*words, *flags({k.replace("__", "."): v for k, v in fields.items()})])
    return Outcome(status, out.getvalue(), err.getvalue())


def flags(fields: Fields) -> list[str]:
    """Recipe overrides as words of a command line."""
    return [f"--{name}={json.dumps(value)}" for name, value in fields.items()]


def pretraining(out: Path, data: object = "digits", **fields: Any) -> list[str]:
    """The words of a tiny pre-training."""
    changed = {name.replace("__", "."): value for name, value in fields.items()}
    words = ["pretrain", "digits", "--data", str(data), "--out", str(out), "--json"]
    return [*words, *flags({**PRETRAIN, **changed})]


def tokenizing(out: Path, data: object = "digits", **fields: Any) -> list[str]:
    """The words of a tiny tokenizer's training."""
    changed = {name.replace("__", "."): value for name, value in fields.items()}
    words = ["tokenizer", "digits", "--data", str(data), "--out", str(out), "--json"]
    return [*words, *flags({**TOKENIZER, **changed})]


def pictures(folder: Path, count: int, *, classes: tuple[str, ...] = ()) -> Path:
    """A folder of small pictures, in a folder a class when there are classes."""
    generator = np.random.default_rng(7)
    for number in range(count):
        home = folder / classes[number % len(classes)] if classes else folder
        home.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / f"picture-{number:03d}.jpg")
    return folder


def stopped(words: list[str], task: str, step: int) -> Outcome:
    """Run a command in this process, with a SIGTERM inside a step."""
    with pytest.MonkeyPatch.context() as patch:
        Blow(signal.SIGTERM, task, step - 1).prepare(patch)
        return beit(*words)


def photos(folder: Path, train: int = 38, held_out: int = 2) -> Path:
    """A folder of pictures that says which are to be held out."""
    pictures(folder / "train", train)
    pictures(folder / "val", held_out)
    return folder


def rows_of(run: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def ends_of(run: Path) -> dict[str, str]:
    """The hashes of what a run leaves: both models and both metrics."""
    names = ("model.safetensors", "metrics.jsonl")
    ends = [folder / name for folder in (run, run / "tokenizer") for name in names]
    return {str(end.relative_to(run)): sha256_of(end) for end in ends}


@dataclass(frozen=True)
class Blow:
    """Where a signal hits a process: inside a step of a task, or before a file appears."""

    number: signal.Signals
    task: str = ""  # class of the task
    done: int = -1  # steps it had done
    file: str = ""  # pattern of the end of the file's path

    def prepare(self, patch: pytest.MonkeyPatch) -> None:
        """Arrange for the signal in this process."""
        step, write = TrainingStep.__call__, files.atomic_write_bytes

        def stepping(self_: TrainingStep, done: int, batches: Iterator[Any]) -> StepRecord:
            record = step(self_, done, batches)
            if (type(self_._task).__name__, done) == (self.task, self.done):
                os.kill(os.getpid(), self.number)
            return record

        def writing(path: Path, data: bytes) -> None:
            if self.file and fnmatch(path.as_posix(), f"*{self.file}"):
                os.kill(os.getpid(), self.number)
            write(path, data)

        patch.setattr(TrainingStep, "__call__", stepping)
        for module in (files, saved_models, storage):
            patch.setattr(module, "atomic_write_bytes", writing)


def child(words: list[str], log: str, blow: Blow | None) -> None:
    """The body of a child process: the command, with all it says in a file."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the loader, as outside of tests
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if blow is not None:
        blow.prepare(pytest.MonkeyPatch())
    status = main(words)
    sys.stdout.flush()
    os._exit(status)


def start_child(words: list[str], log: Path, blow: Blow | None = None) -> BaseProcess:
    """Start the command in a process forked from a server that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    preloaded = ["__main__", "commands.recipe_runs", "sklearn.datasets", "torch.utils.tensorboard"]
    context.set_forkserver_preload(preloaded)
    process = context.Process(target=child, args=(words, str(log), blow))
    with pytest.MonkeyPatch.context() as patch:  # where the server finds this file
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        process.start()
    return process


def in_child(words: list[str], log: Path, blow: Blow | None = None) -> int:
    """Run the command in a child; its exit status, negative for the signal that ended it."""
    process = start_child(words, log, blow)
    process.join(280)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode
