"""Runs side by side: what differs, what was measured last, and how far chance goes."""

import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

import beit as package
from commands.recipe_runs import beit, pretraining, rows_of, stopped


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three seeds and one of other masks, on pixels."""
    home = tmp_path_factory.mktemp("compared")
    pixels: dict[str, Any] = {"objective__target": "pixels", "optim__lr": 1e-2}
    fields: dict[str, dict[str, Any]] = {
        **{f"seed{n}": {"engine__seed": n, "engine__log_every": 1 + n} for n in range(3)},
        "random": {"masking__kind": "random"},
    }
    for name, more in fields.items():
        assert beit(*pretraining(home / name, **pixels, **more)).status == 0
    return {name: home / name for name in fields}


def test_what_differs_and_what_was_measured(runs: dict[str, Path]) -> None:
    outcome = beit("compare", runs["seed0"], runs["random"], "--json")
    assert outcome.status == 0, outcome.err
    assert set(outcome.result["differences"]) == {"masking.kind", "engine.log_every"}
    assert outcome.result["differences"]["masking.kind"] == ["blockwise", "random"]
    for told, name in zip(outcome.result["runs"], ("seed0", "random"), strict=True):
        assert told["run"] == str(runs[name]) and told["finished"]
        assert told["validation"] == rows_of(runs[name], "val")[-1]
    assert outcome.result["groups"] == []
    assert any("own masks" in note for note in outcome.result["notes"])


def test_mean_and_spread_over_seeds(runs: dict[str, Path]) -> None:
    found = package.compare(list(runs.values()), quiet=True)
    (group,) = found["groups"]
    seeds = [runs[f"seed{n}"] for n in range(3)]
    assert group["runs"] == [str(run) for run in seeds] and group["step"] == 4
    losses = [rows_of(run, "val")[-1]["loss"] for run in seeds]
    assert len(set(losses)) == 3
    assert group["mean"]["loss"] == pytest.approx(statistics.mean(losses))
    assert group["deviation"]["loss"] == pytest.approx(statistics.stdev(losses))


def test_a_run_made_twice_with_one_seed_is_no_second_draw(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    again = Path(shutil.copytree(runs["seed1"], tmp_path / "again"))
    alone = package.compare([runs["seed1"], again], quiet=True)
    assert alone["groups"] == [] and any(str(again) in note for note in alone["notes"])
    (group,) = package.compare([runs["seed0"], runs["seed1"], again], quiet=True)["groups"]
    assert group["runs"] == [str(runs["seed0"]), str(runs["seed1"])]


def test_people_see_tables(runs: dict[str, Path]) -> None:
    out = beit("compare", *runs.values()).out
    for text in (
        "masking.kind",
        "What differs",
        "neighbour_copy_loss",
        "differ in seed alone",
        "±",
    ):
        assert text in out


def test_a_tokenizer_of_another_seed_trained_on_the_way_is_a_seed(tmp_path: Path) -> None:
    for n in (0, 1):
        seeds = {"engine__seed": n, "tokenizer__engine__seed": n}
        assert beit(*pretraining(tmp_path / str(n), **seeds)).status == 0
    given = ["--tokenizer", tmp_path / "1" / "tokenizer"]
    assert beit(*pretraining(tmp_path / "given"), *given).status == 0
    found = package.compare([tmp_path / name for name in ("0", "1", "given")], quiet=True)
    assert [group["runs"] for group in found["groups"]] == [[str(tmp_path / n) for n in "01"]]
    assert len(set(found["differences"]["tokenizer"])) == 2
    assert any("tokenizers" in note for note in found["notes"])


def test_a_run_that_was_not_measured_yet_stands_there_too(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    words = pretraining(tmp_path / "run", objective__target="pixels", optim__lr=1e-2)
    assert stopped(words, "PretrainTask", 2).status == 143
    outcome = beit("compare", runs["seed0"], tmp_path / "run")
    assert outcome.status == 0 and "has not been measured yet" in outcome.out


def test_what_cannot_be_compared_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["seed0"]
    for words, expected in (
        ([run], "two run folders or more"),
        ([run, run], "each once"),
        ([run, tmp_path], "is not a run folder"),
    ):
        outcome = beit("compare", *words)
        assert outcome.status == 2 and expected in outcome.complaint, outcome.err


@pytest.mark.parametrize("note", ["source.json", "initial.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
@pytest.mark.parametrize("command", ["compare", "report"])
def test_damaged_notes_of_a_run_are_named(
    command: str, content: str, note: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs["seed0"], tmp_path / "run"))
    (run / note).write_text(content)
    outcome = beit(command, run, *([runs["seed1"]] if command == "compare" else []))
    assert outcome.status == 2 and outcome.complaint.startswith(str(run / note)), outcome.err
