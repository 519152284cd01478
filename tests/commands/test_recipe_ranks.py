"""How a step is cut up changes nothing: two processes, two micro-batches, loader workers."""

from pathlib import Path

import pytest

from commands.recipe_runs import beit, pretraining, rows_of, tokenizing

RECIPE = {
    "encoder__drop_path": 0.1,
    "encoder__preset": "plus",
    "engine__precision": "float32",
    "optim__lr": 0.01,
    "optim__steps": 6,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    assert beit(*tokenizing(folder)).status == 0
    return folder


@pytest.fixture(scope="module")
def alone(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert beit(*pretraining(folder, **RECIPE), "--tokenizer", tokenizer).status == 0
    return folder


def assert_same_losses(run: Path, alone: Path) -> None:
    ours, theirs = rows_of(run), rows_of(alone)
    assert [row["step"] for row in ours] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "accuracy"):
        expected = [row[name] for row in theirs]
        assert [row[name] for row in ours] == pytest.approx(expected, abs=1e-5), name
    assert abs(theirs[0]["loss"] - theirs[-1]["loss"]) > 0.01  # the comparison can fail
    ours, theirs = rows_of(run, "val"), rows_of(alone, "val")
    assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], abs=1e-4)
    for name in ("pictures", "places", "marginal_entropy", "neighbour_copy_accuracy"):
        assert ours[-1][name] == pytest.approx(theirs[-1][name], abs=1e-9), name


def test_two_micro_batches_are_one(tokenizer: Path, alone: Path, tmp_path: Path) -> None:
    for parts in (2, 3):
        out = tmp_path / str(parts)
        words = pretraining(out, optim__accumulate=parts, **RECIPE)
        assert beit(*words, "--tokenizer", tokenizer).status == 0
        assert_same_losses(out, alone)


def test_two_processes_are_one(
    tokenizer: Path, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = pretraining(out, **RECIPE)
    assert beit(*words, "--tokenizer", tokenizer, "--processes", 2).status == 0
    assert_same_losses(out, alone)
    told = capfd.readouterr()
    lines = told.out.splitlines()  # one rank tells the result, the other nothing
    assert len(lines) == 1 and lines[0].startswith('{"run"')
    assert beit(*words, "--tokenizer", tokenizer, "--resume", "--processes", 1).status == 0


def test_pixels_are_measured_alike_by_two_processes(tmp_path: Path) -> None:
    fields = {**RECIPE, "objective__target": "pixels", "engine__evaluate_every": 2}
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        assert beit(*pretraining(out, **fields), "--processes", processes).status == 0
        found.append(rows_of(out, "val"))
    alone, shared = found
    assert [row["step"] for row in alone] == [row["step"] for row in shared] == [2, 4, 6]
    assert alone[-1]["loss"] != alone[0]["loss"]
    for name in ("pictures", "places", "zero_loss", "constant_loss", "mean_colour_loss"):
        assert shared[-1][name] == pytest.approx(alone[-1][name], rel=1e-12), name
    for name in ("loss", "explained"):
        assert shared[-1][name] == pytest.approx(alone[-1][name], abs=1e-5), name


@pytest.mark.slow
def test_two_processes_are_refused_as_one(tmp_path: Path) -> None:
    words = tokenizing(tmp_path / "t", optim__batch=9)
    outcome = beit(*words, "--processes", 2)
    assert outcome.status == 2 and "multiple of 2" in outcome.complaint
    assert not (tmp_path / "t").exists()


def test_workers_change_nothing(tokenizer: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = pretraining(out, data__workers=2, **RECIPE)
    assert beit(*words, "--tokenizer", tokenizer).status == 0
    name = "model.safetensors"
    assert (out / name).read_bytes() == (alone / name).read_bytes()
