"""A mistake that every rank makes is told once, and the command ends with status 2."""

import json
from pathlib import Path

import pytest

from beit.engine import distribution
from beit.engine.distribution import World
from beit.engine.signals import LAUNCHED
from commands.fine_tuning_runs import classifying, coloured, halves, segmenting
from commands.recipe_runs import beit, pretraining


def words_of(name: str, folder: Path) -> list[str]:
    """A command that asks for a model that is not there, or for a bank that has no use."""
    out, nothing = folder / "run", folder / "nothing"
    if name == "classify":
        return classifying(out, coloured(folder / "data"), nothing)
    if name == "segment":
        return segmenting(out, halves(folder / "data"), nothing)
    if name == "evaluate":
        return ["evaluate", str(nothing), "--data", str(coloured(folder / "data")), "--json"]
    more = ["--tokenizer", str(nothing)]
    if name == "bank":
        words = pretraining(out, coloured(folder / "data"), objective__target="pixels")
        return ["bank", *words[1:], *more]
    return [*pretraining(out, coloured(folder / "data")), *more]


@pytest.mark.parametrize("name", ["classify", "segment", "evaluate", "bank", "pretrain"])
def test_a_rank_leaves_it_to_the_launcher(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told.json"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(LAUNCHED, str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(told))
    monkeypatch.setattr(distribution, "_join", lambda device: World(1, 2, 1, 2))
    monkeypatch.setattr(distribution, "_leave", lambda **how: None)
    with pytest.raises(SystemExit) as left:
        beit(*words_of(name, tmp_path), "--device", "cpu")
    assert left.value.code == 2
    message = json.loads(told.read_text())["message"]
    reason = "target is pixels" if name == "bank" else str(tmp_path / "nothing")
    assert message["extraInfo"]["status"] == 2 and reason in message["message"]
    assert not (tmp_path / "run").exists()


def test_two_processes_refuse_as_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = beit(*words_of("classify", tmp_path), "--processes", 2)
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert str(tmp_path / "nothing") in outcome.complaint
    assert capfd.readouterr().err == ""  # of the ranks themselves
    assert not (tmp_path / "run").exists()
