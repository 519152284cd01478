"""What a person is told: exit statuses, one sentence for a mistake, one object for a program."""

import argparse
import errno
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from beit.cli import main, parser
from beit.cli.arguments import unexpected
from beit.cli.devices import _for_ranks
from beit.data.reading.watch import LoaderError
from beit.engine import distribution
from beit.engine.distribution import RankError
from beit.engine.failure import Diverged
from beit.engine.signals import StoppedBySignal
from beit.errors import UserError
from beit.recipes import catalogue
from commands.recipe_runs import beit, pictures

PRETRAIN = ["pretrain", "digits", "--data", "digits", "--out", "TMP/run"]
TOKENIZER = ["tokenizer", "digits", "--data", "digits", "--out", "TMP/run"]
WITHOUT_DATA = ["pretrain", "digits", "--out", "TMP/run", "--data"]

# Words of a command line, and what the one sentence must say: the culprit and the way out.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no command": ([], ["COMMAND", "beit --help"]),
    "unknown command": (["pretrian", "digits"], ["'pretrian'", "did you mean pretrain?"]),
    "unknown action": (["recipes", "shwo"], ["'shwo'", "did you mean show?"]),
    "nothing to train on": (["pretrain", "digits"], ["--data", "--out", "pretrain --help"]),
    "unknown flag": (["report", "TMP", "--jsn"], ["'--jsn'", "did you mean --json?"]),
    "what is no flag": (
        ["predict", "TMP", "TMP", "--pictures", "x"],
        ["'--pictures'", "predict --help"],
    ),
    "no number": (["demo", "--seed", "x"], ["--seed", "'x'"]),
    "fields of no recipe": (["demo", "--optim.lr", "1"], ["demo does not take '--optim.lr=1'"]),
    "unknown recipe": (["pretrain", "digts", *PRETRAIN[2:]], ["'digts'", "did you mean digits?"]),
    "no such recipe": (
        ["recipes", "show", "zzzz"],
        ["'zzzz'", "are digits, tiny, small"],
    ),
    "a recipe of another task": (
        ["pretrain", "base-384", *PRETRAIN[2:]],
        ["base-384 is a recipe of classify", "for pretrain there are digits"],
    ),
    "a bank of a classifier's recipe": (
        ["bank", "base-384", *PRETRAIN[2:], "--tokenizer", "TMP/t"],
        ["base-384 is a recipe of classify"],
    ),
    "a name for another task": (
        ["recipes", "show", "base-384", "--task", "segment"],
        ["base-384 is a recipe of classify", "for segment there are digits"],
    ),
    "near another task's recipe": (["recipes", "show", "bse-384"], ["did you mean base-384?"]),
    "nothing for a folder": ([*PRETRAIN[:-1], ""], ["--out is empty"]),
    "nothing for a picture": (["predict", "TMP", ""], ["pictures is empty"]),
    "a wrong field and no value": ([*PRETRAIN, "--optim.lrr"], ["did you mean --optim.lr?"]),
    "near a field": ([*PRETRAIN, "--optim.weight_decy=1"], ["mean --optim.weight_decay?"]),
    "last part of a field": ([*PRETRAIN, "--mask.kind", "random"], ["mean --masking.kind?"]),
    "field without its group": ([*PRETRAIN, "--lr", "1"], ["--lr", "did you mean --optim.lr?"]),
    "near a flag": ([*PRETRAIN, "--resum", "x"], ["--resum", "did you mean --resume?"]),
    "far from all": ([*PRETRAIN, "--zzz.qqq", "1"], ["--zzz.qqq", "recipes show digits"]),
    "word too much": ([*PRETRAIN, "more"], ["'more'", "--dotted.name value"]),
    "no value": ([*PRETRAIN, "--optim.lr"], ["--optim.lr needs a value"]),
    "a flag for a value": ([*PRETRAIN, "--optim.lr", "--json"], ["--optim.lr needs a value"]),
    "no number in a field": ([*PRETRAIN, "--optim.lr", "fast"], ["optim.lr", "'fast'"]),
    "below its range": ([*PRETRAIN, "--optim.lr", "-1"], ["optim.lr", "-1", "greater than 0"]),
    "not finite": ([*PRETRAIN, "--optim.lr", ".inf"], ["optim.lr", "inf", "finite"]),
    "no choice": ([*PRETRAIN, "--masking.kind", "blocks"], ["masking.kind", "'blockwise-paper'"]),
    "part of a pair": ([*PRETRAIN, "--optim.betas", "[0.9,1.5]"], ["optim.betas.1", "1.5"]),
    "patches of nothing": ([*PRETRAIN, "--encoder.patch_size", "[0,4]"], ["patch_size.0", "0"]),
    "not a multiple": ([*PRETRAIN, "--encoder.image_size=[18,16]"], ["height 18", "patch 4"]),
    "no masked place": ([*PRETRAIN, "--masking.kind", "none"], ["set objective.places all"]),
    "not divided by accumulate": (
        [*PRETRAIN, "--optim.batch=10", "--optim.accumulate=3"],
        ["batch of 10", "3 micro-batches", "multiple of 3"],
    ),
    "the tokenizer's batch": (
        [*PRETRAIN, "--tokenizer.optim.batch=10", "--tokenizer.optim.accumulate=4"],
        ["batch of 10", "multiple of 4"],
    ),
    "no length": (
        [*PRETRAIN, "--optim.steps=null", "--optim.epochs=null"],
        ["--optim.steps or --optim.epochs"],
    ),
    "heads": ([*PRETRAIN, "--encoder.width=96", "--encoder.heads=5"], ["width 96", "5 heads"]),
    "more masks than patches": ([*PRETRAIN, "--masking.count", "17"], ["17", "16"]),
    "the tokenizer's picture": ([*TOKENIZER, "--model.image_size=[15,16]"], ["15x16", "of 4"]),
    "no data": ([*WITHOUT_DATA, "TMP/phots"], ["no folder", "did you mean", "photos"]),
    "no such scheme": ([*WITHOUT_DATA, "digit"], ["digit", "did you mean digits?"]),
    "empty folder": ([*WITHOUT_DATA, "TMP/empty"], ["there is no picture in", ".png"]),
    "a file": ([*WITHOUT_DATA, "TMP/file"], ["neither a folder nor a .tar"]),
    "a full folder": ([*PRETRAIN[:-1], "TMP/photos"], ["not empty", "--resume", "--out"]),
    "a file for a folder": ([*PRETRAIN[:-1], "TMP/file"], ["is a file", "--out"]),
    "below a file": ([*PRETRAIN[:-1], "TMP/file/run"], ["cannot be written to", "--out"]),
    "no run": (
        [*PRETRAIN[:-1], "TMP/photos", "--resume"],
        ["photos holds no run to go on with", "recipe.yaml"],
    ),
    "fewer than no process": ([*PRETRAIN, "--processes", "-1"], ["-1 processes", "1 or more"]),
    "no process": ([*PRETRAIN, "--processes", "0"], ["0 processes", "1 or more"]),
    "more GPUs than there are": ([*PRETRAIN, "--gpus", "99"], ["99 GPUs", "this machine has"]),
    "both": ([*PRETRAIN, "--gpus", "2", "--processes", "2"], ["--processes", "--gpus"]),
    "restarts of one process": ([*PRETRAIN, "--restarts", "2"], ["--restarts 2", "--processes"]),
    "fewer than no restart": (
        [*PRETRAIN, "--processes=2", "--restarts=-1"],
        ["--restarts -1", "0 or more"],
    ),
    "device twice": ([*PRETRAIN, "--processes=2", "--device=cpu"], ["leave out --device"]),
    "no device": ([*PRETRAIN, "--device", "gpu"], ["--device gpu", "use cpu, cuda or cuda:N"]),
    "no device to train on": ([*PRETRAIN, "--device", "meta"], ["--device meta", "use cpu"]),
    "no such GPU": ([*PRETRAIN, "--device", "cuda:98"], ["--device cuda:98"]),
    "no tokenizer": ([*PRETRAIN, "--tokenizer", "TMP/empty"], ["no finished model", "config.json"]),
    "no tokenizer folder": ([*PRETRAIN, "--tokenizer", "TMP/t"], ["TMP/t holds no finished model"]),
    "garbage for a tokenizer": ([*PRETRAIN, "--tokenizer", "TMP/photos"], ["as JSON"]),
    "a tokenizer for pixels": (
        [*PRETRAIN, "--tokenizer", "TMP/t", "--objective.target", "pixels"],
        ["--tokenizer", "objective.target is pixels"],
    ),
    "report of no run": (["report", "TMP/photos"], ["is not a run folder", "recipe.yaml"]),
    "report of nothing": (["report", "TMP/nothing"], ["is not a run folder"]),
    "a name too long": (
        [*PRETRAIN[:-1], "TMP/" + "r" * 300],
        ["cannot be had", "shorter name"],
    ),
    "a model's too": (
        ["evaluate", "m" * 300, "--data", "digits"],
        ["mmm cannot be", "shorter name"],
    ),
    "check without workers": (["data", "check", "digits", "--workers", "-1"], ["--workers -1"]),
    "check of nothing": (["data", "check", "TMP/nothing"], ["no folder"]),
    "info with an option of check": (["data", "info", "digits", "--workers", "2"], ["--workers"]),
    "no such split": (["data", "info", "digits", "--split", "tset"], ["'tset'", "train, val, all"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_makes_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "config.json").write_text("{")
    (tmp_path / "file").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    words, expected = MISTAKES[name]
    outcome = beit(*(word.replace("TMP", str(tmp_path)) for word in words))
    assert outcome.status == 2, outcome.err
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("beit: "), outcome.err
    for part in expected:
        assert part.replace("TMP", str(tmp_path)) in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


HELP = "demo tokenizer pretrain classify segment evaluate predict probe push data recipes".split()
HELP += ["", "compare", "data check", "data info"]


def _commands(
    above: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command by its words."""
    for action in above._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from _commands(below, (*words, name))
            return
    yield words, above


COMMANDS = dict(_commands(parser()))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_flag_is_suggested_that_there_is_not(command: tuple[str, ...]) -> None:
    """Not even to those who write what the help calls an argument as a flag."""
    asked = [*command]
    for action in COMMANDS[command]._actions:
        if action.required:
            asked += [*action.option_strings[:1], str(next(iter(action.choices or "1")))]
    options, _ = parser().parse_known_args(asked)
    taken = COMMANDS[command]._option_string_actions
    for name in vars(options):
        for typed in (f"--{name}", f"--{name}s"):
            hint = re.search(r"did you mean (\S+)\?", unexpected(typed, options))
            assert hint is None or hint[1] in taken


@pytest.mark.parametrize("command", [*HELP, "recipes list", "recipes show", "report"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: beit {command}".rstrip() in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("beit 0.")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Any:
    """Run a command inside which something fails."""

    def fail() -> dict[str, dict[str, str]]:
        raise error

    monkeypatch.setattr(catalogue, "list_recipes", fail)
    return beit("recipes", "list", "--json")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TOLD: list[tuple[BaseException, int, str]] = [
    (Diverged("step 7 is not finite"), 1, "step 7 is not finite"),
    (LoaderError("a worker died"), 1, "a worker died"),
    (RankError("rank 1 was killed"), 1, "rank 1 was killed"),
    (caused(RankError("rank 0: a worker"), LoaderError("a worker")), 1, "rank 0: a worker"),
    (caused(RankError("rank 1 failed"), RankError("rank 1 waits")), 1, "rank 1 failed"),
    (MemoryError(), 1, "out of memory (no more memory); choose a smaller"),
    (torch.OutOfMemoryError("CUDA\nand more"), 1, "out of memory (CUDA); choose a smaller"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory (Default"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), 1, "out of memory (CUDA"),
    (UserError("the batch is wrong"), 2, "the batch is wrong"),
    (OSError(errno.ENOSPC, "No space", "a/b"), 2, "a/b cannot be written (No space): make room"),
    (OSError(errno.EDQUOT, "Quota"), 2, "the disk cannot be written (Quota): make room"),
    (OSError(errno.EROFS, "Read-only", "a/b"), 2, "a/b cannot be written (Read-only): choose"),
    (OSError(errno.EPERM, "No", b"b\xff"), 2, "b\udcff cannot be made (No): have that perm"),
    (OSError(errno.EISDIR, "Dir", "a", None, "b"), 2, "b is a folder where a file is wanted (Dir)"),
    (OSError(errno.ENOENT, "No such file", "a"), 2, "a is not there, or no longer (No such"),
    (OSError(errno.EIO, "I/O error", "a"), 2, "a cannot be read or written (I/O error): see that"),
    (OSError(errno.ESTALE, "Stale", "a"), 2, "a is no longer what was opened (Stale): see that"),
    (OSError(errno.EMFILE, "Too many", "a"), 2, "a cannot be opened (Too many): permit more"),
    (OSError(errno.EMFILE, "Too many"), 2, "a file cannot be opened (Too many): permit more"),
    (StoppedBySignal("stopped by SIGTERM", 15), 143, "stopped by SIGTERM"),
    (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
]


@pytest.mark.parametrize(("error", "status", "sentence"), TOLD, ids=lambda value: repr(value)[:30])
def test_known_failures_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, sentence: str
) -> None:
    outcome = failing(monkeypatch, error)
    assert (outcome.status, outcome.out) == (status, "")
    assert len(outcome.err.splitlines()) == 1 and outcome.complaint.startswith(sentence)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "ZeroDivisionError: x"),
        OSError(errno.EACCES, "ZeroDivisionError: x"),  # of no file
        ZeroDivisionError("x"),
        caused(RankError("rank 1 failed"), ZeroDivisionError("x")),
    ],
)
def test_a_fault_of_ours_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    outcome = failing(monkeypatch, error)
    assert (outcome.status, outcome.out) == (1, "")
    assert "Traceback" in outcome.err and "ZeroDivisionError: x" in outcome.err
    assert "please report it" in outcome.complaint


def test_a_reader_who_leaves_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(monkeypatch, BrokenPipeError()).status == 0


JSON: dict[str, tuple[list[str], set[str]]] = {
    "list": (["recipes", "list"], {"recipes"}),
    "show": (["recipes", "show", "digits"], {"name", "recipe", "parameters", "gflop_per_picture"}),
    "info": (["data", "info", "digits"], {"pictures", "classes", "height", "fingerprint"}),
    "check": (["data", "check", "digits", "--split", "val"], {"pictures", "bad"}),
}


@pytest.mark.parametrize("name", JSON)
def test_json_is_the_last_line(name: str) -> None:
    words, keys = JSON[name]
    outcome = beit(*words, "--json")
    assert outcome.status == 0 and keys <= set(outcome.result) and outcome.err == ""
    people = beit(*words)
    assert people.status == 0 and people.out and not people.out.splitlines()[-1].startswith("{")


def test_data_is_looked_at_whole(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 30, classes=("cat", "dog"))
    whole = (folder / "dog" / "picture-001.jpg").read_bytes()
    (folder / "dog" / "picture-001.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not a picture")
    checked = beit("data", "check", folder, "--json")
    assert checked.status == 0 and checked.result["pictures"] == 30
    assert [bad["path"] for bad in checked.result["bad"]] == ["dog/picture-001.jpg"]
    assert "dog/picture-001.jpg: " in beit("data", "check", folder).out
    info = beit("data", "info", folder, "--json").result
    assert info["classes"] == {"cat": 15, "dog": 15}
    assert (info["bad_in_sample"], info["height"], info["width"]) == (1, [20] * 3, [24] * 3)


def test_equal_pictures_are_looked_for_when_asked_only(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 3)
    first = min(folder.rglob("*.jpg"))
    first.with_name("z.jpg").write_bytes(first.read_bytes())
    assert "duplicates" not in beit("data", "check", folder, "--json").result
    outcome = beit("data", "check", folder, "--duplicates", "--json")
    assert outcome.result["duplicates"] == [[first.name, "z.jpg"]]
    assert f"the same pixels: {first.name}, z.jpg" in outcome.out


def test_json_may_stand_before_the_command() -> None:
    assert beit("--json", "recipes", "list").out == beit("recipes", "list", "--json").out
    assert "COMMAND" in beit("--json").complaint


def test_a_recipe_of_one_task_is_shown_by_its_name() -> None:
    shown = beit("recipes", "show", "base-384", "--json")
    assert shown.out == beit("recipes", "show", "base-384", "--task", "classify", "--json").out
    assert "decoder" in beit("recipes", "show", "base-upernet", "--json").result["recipe"]
    assert "tokenizer" in beit("recipes", "show", "base", "--json").result["recipe"]


def test_fields_may_come_before_the_recipe() -> None:
    words = ["recipes", "show", "--optim.lr", "3e-4", "--optim.betas=[0.8,0.9]", "digits", "--json"]
    optim = beit(*words).result["recipe"]["optim"]
    assert (optim["lr"], optim["betas"]) == (3e-4, [0.8, 0.9])


def test_several_processes_start_the_same_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[Any] = []

    def launch(*arguments: Any, restarts: int) -> None:
        calls.append((*arguments, restarts))

    monkeypatch.setattr(distribution, "launch", launch)
    words = ["tokenizer", "digits", "--data", "digits", "--out", str(tmp_path / "run"), "--json"]
    for flags in (["--processes", "2"], ["--processes=2", "--restarts", "4"]):
        outcome = beit(*words[:2], *flags, *words[2:], "--optim.steps", "3")
        assert (outcome.status, outcome.out) == (0, "")
    started = [sys.executable, "-m", "beit", *words, "--optim.steps", "3", "--device", "cpu"]
    assert calls == [(2, started, "cpu", 0), (2, started, "cpu", 4)]
    assert not (tmp_path / "run").exists()


def test_only_the_number_of_processes_is_taken_away() -> None:
    words = ["pretrain", "--gpus", "4", "x", "--gpus=4", "--processes", "2", "--out", "gpus"]
    words += ["--restarts=1", "--restarts", "3"]
    assert _for_ranks(words) == ["pretrain", "x", "--out", "gpus"]


def test_a_terminal_that_lacks_a_letter_is_shown_its_escape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = pictures(tmp_path / "photos", 4, classes=("Käse", "wine"))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["data", "info", str(photos)]) == 0
    terminal.flush()
    assert b"K\\xe4se" in terminal.buffer.getvalue()
