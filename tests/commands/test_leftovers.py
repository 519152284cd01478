"""What a kill leaves goes away, a model is replaced whole, the user's files stay."""

import os
from pathlib import Path
from typing import Any

import pytest

from beit.commands.assembly import leftovers
from beit.commands.assembly.leftovers import clear_leftovers, replace_model

HEX = "0123456789ab"
MODEL = ("model.safetensors", "config.json")


class Killed(BaseException):
    """What a kill is to the code that it hits; nothing may catch it."""


def write(text: str) -> Any:
    def fill(folder: Path) -> None:
        folder.mkdir()
        for name in MODEL:
            (folder / name).write_text(text)

    return fill


def content(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in MODEL}


def test_what_was_being_written_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    ours = ["recipe.yaml", "source.json", "pictures.npz", "evaluation.json", "initial.json"]
    ours += [
        "result.json",
        *MODEL,
        *(f"best/{n}" for n in MODEL),
        *(f"tokenizer/{n}" for n in MODEL),
    ]
    theirs = [
        "notes.txt.tmp-" + HEX,
        "config.json.tmp-mine",
        "best/config.json.tmp-",
        "config.json",
    ]
    for name in [*(f"{name}.tmp-{HEX}" for name in ours), *theirs]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    clear_leftovers(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == set(theirs)


def test_a_tokenizer_that_is_a_run_of_its_own_clears_its_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "recipe.yaml").write_text("")
    half = tmp_path / "tokenizer" / f"config.json.tmp-{HEX}"
    half.write_text("half")
    clear_leftovers(tmp_path)
    assert half.is_file()


def test_killed_at_every_call_a_replacement_leaves_the_old_model_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = 0
    while True:
        run = tmp_path / str(at)
        run.mkdir()
        write("old")(run / "best")
        (run / "best" / "notes.txt").write_text("mine")
        calls = iter(range(at))
        with monkeypatch.context() as patch:
            for name in ("rename", "unlink", "rmdir", "mkdir", "open"):
                patch.setattr(os, name, dying(getattr(os, name), calls))
            try:
                replace_model(run / "best", write("new"))
                done = True
            except Killed:
                done = False
        if not done:
            assert (run / "best").exists() is False or len(content(run / "best")) == 1
            clear_leftovers(run)
        assert content(run / "best") in ({"old"}, {"new"})
        assert (run / "best" / "notes.txt").read_text() == "mine"
        assert [path.name for path in run.iterdir()] == ["best"]
        if done:
            break
        at += 1
    assert content(run / "best") == {"new"} and at > 6


def test_a_first_model_that_was_half_written_is_no_model(tmp_path: Path) -> None:
    half = tmp_path / f"best.tmp-{HEX}"
    half.mkdir()
    (half / MODEL[0]).write_text("new")
    clear_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def dying(function: Any, calls: Any) -> Any:
    """The function, until the calls are spent: then and ever after it is killed."""

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise Killed
        return function(*arguments, **options)

    return call


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write("old")(tmp_path / "best")

    def failing(folder: Path) -> None:
        folder.mkdir()
        (folder / MODEL[0]).write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_model(tmp_path / "best", failing)
    assert content(tmp_path / "best") == {"old"} and len(list(tmp_path.iterdir())) == 1
    assert leftovers.BEST == "best"
