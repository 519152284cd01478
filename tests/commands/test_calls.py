"""Calls from Python do what the command line does, and take what it takes."""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import beit
from beit.cli import parser
from beit.errors import UserError
from beit.files import sha256_of
from beit.nn.encoder import Encoder
from commands.recipe_runs import PRETRAIN, TOKENIZER, photos, pictures, rows_of

PIXELS = {**PRETRAIN, "objective.target": "pixels"}  # no tokenizer has to be trained
# What only a command line needs: starting ranks, what it prints, and short forms of recipe fields.
OF_A_SHELL = {"help", "json", "gpus", "processes", "restarts", "patience"}
CALLS: dict[
    str, tuple[Callable[..., object], dict[str, str]]
] = {  # command -> call, and options that have another name in it
    "tokenizer": (beit.train_tokenizer, {}),
    "pretrain": (beit.pretrain, {}),
    "classify": (beit.classify, {"image_size": "changes"}),
    "segment": (beit.segment, {"image_size": "changes"}),
    "bank": (beit.bank, {"bank_views": "views"}),
    "convert": (beit.convert, {}),
    "evaluate": (
        beit.evaluate,
        dict.fromkeys(("mode", "scales", "flip"), "dense"),
    ),
    "compare": (beit.compare, {}),
    "predict": (
        beit.predict,
        {**dict.fromkeys(("mode", "scales", "flip"), "dense"), "lines": "quiet"},
    ),
    "push": (beit.push, {"run_folder": "run", "public": "private", "data_name": "data"}),
    "report": (beit.write_report, {"run_folder": "run"}),
    "plan": (beit.plan, {}),
}


def _command(name: str) -> argparse.ArgumentParser:
    groups = [action for action in parser()._actions if isinstance(action.choices, dict)]
    found: argparse.ArgumentParser = groups[0].choices[name]  # type: ignore[index]
    return found


@pytest.mark.parametrize("name", CALLS)
def test_a_call_takes_every_option_of_its_command(name: str) -> None:
    call, others = CALLS[name]
    options = {action.dest for action in _command(name)._actions} - OF_A_SHELL
    wanted = {others.get(option, option) for option in options}
    assert wanted <= {*inspect.signature(call).parameters}, name


def test_changes_are_those_of_the_recipe(tmp_path: Path) -> None:
    beit.pretrain("digits", "digits", tmp_path / "one", changes=PIXELS)
    beit.pretrain(beit.recipe("digits", PIXELS), "digits", tmp_path / "two")
    weights = [sha256_of(tmp_path / run / "model.safetensors") for run in ("one", "two")]
    assert weights[0] == weights[1]


def test_changed_pictures_are_refused_and_may_be_accepted(tmp_path: Path) -> None:
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    short = PIXELS | {"optim.batch": 8}
    beit.pretrain("digits", data, run, changes=short | {"optim.steps": 2, "engine.save_every": 1})
    for checkpoint in sorted((run / "checkpoints").iterdir())[1:]:
        checkpoint.rename(tmp_path / checkpoint.name)
    pictures(data / "train" / "more", 3)
    again = {"changes": short | {"optim.steps": 2, "engine.save_every": 1}, "resume": True}
    with pytest.raises(UserError, match="accept-changed-data"):
        beit.pretrain("digits", data, run, **again)  # type: ignore[arg-type]
    beit.pretrain("digits", data, run, accept_changed_data=True, **again)  # type: ignore[arg-type]
    assert [row["step"] for row in rows_of(run)] == [1, 2]


def test_a_bank_made_from_python_is_taken_by_a_run(tmp_path: Path) -> None:
    tokenizer, bank, run = tmp_path / "tokenizer", tmp_path / "bank", tmp_path / "run"
    beit.train_tokenizer("digits", "digits", tokenizer, changes=TOKENIZER)
    beit.bank("digits", "digits", bank, tokenizer=tokenizer, views=1, changes=PRETRAIN)
    beit.pretrain("digits", "digits", run, bank=bank, changes=PRETRAIN)
    assert len(rows_of(run)) == 4


def test_a_model_is_converted_and_comes_back(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "theirs"
    beit.pretrain("digits", "digits", run, changes=PIXELS)
    told = beit.convert(run, folder, "transformers", encoder_only=True)
    assert told["to"] == "transformers"
    ours, theirs = (_encoder(path) for path in (run, folder))
    images = torch.rand(2, 3, *ours.config.image_size)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).tokens, ours(images).tokens)


def _encoder(path: Path) -> Encoder:
    model = beit.load(path)
    encoder = model if isinstance(model, Encoder) else model.encoder
    assert isinstance(encoder, Encoder)
    return encoder
