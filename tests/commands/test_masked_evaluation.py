"""A finished pre-training is measured again: as in its own rows, on other pictures, other masks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from beit.commands.using.evaluating import evaluate
from beit.tokenizer.dvae import DiscreteVAE
from commands.fine_tuning_runs import classifying, coloured
from commands.recipe_runs import Outcome, beit, photos, pretraining, rows_of, tokenizing

RUNS: dict[str, dict[str, Any]] = {
    "tokens": {"encoder__preset": "plus", "encoder__drop_path": 0.1},
    "pixels": {"objective__target": "pixels", "objective__places": "all", "optim__ema": 0.5},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    for name, fields in RUNS.items():
        outcome = beit(*pretraining(home / name, **fields))
        assert outcome.status == 0, outcome.err
    return home


def measured(run: Path, *more: object, data: object = "digits") -> dict[str, Any]:
    outcome = beit("evaluate", run, "--data", data, "--json", "--device", "cpu", *more)
    assert outcome.status == 0, outcome.err
    return outcome.result


@pytest.mark.parametrize("name", RUNS)
def test_its_own_data_and_masks_give_its_last_row_to_the_last_digit(
    runs: Path, name: str, tmp_path: Path
) -> None:
    found = measured(runs / name, "--out", tmp_path / "found.json")
    row = rows_of(runs / name, "val")[-1]
    figures = {key: value for key, value in row.items() if key in found}
    assert {"pictures", "places", "loss", "constant_loss"} <= set(figures)
    assert {key: found[key] for key in figures} == figures
    assert found["unreadable"] == 0 and found["masking"]["kind"] == "blockwise"
    assert json.loads((tmp_path / "found.json").read_text()) == found


@pytest.mark.parametrize("name", RUNS)
def test_what_was_pushed_is_measured_as_the_run_is(runs: Path, name: str, tmp_path: Path) -> None:
    assert beit("push", runs / name, tmp_path / "pushed", "--licence", "mit").status == 0
    assert measured(tmp_path / "pushed")["loss"] == measured(runs / name)["loss"]
    (tmp_path / "pushed" / "recipe.json").unlink()
    refused = beit("evaluate", tmp_path / "pushed", "--data", "digits")
    assert refused.status == 2 and "recipe.json" in refused.complaint


@pytest.mark.parametrize("name", RUNS)
def test_other_masks_and_other_pictures(runs: Path, name: str, tmp_path: Path) -> None:
    own, run = measured(runs / name), runs / name
    few = measured(run, "--masking.kind", "random", "--masking.count=2", "--masking.exact", "true")
    assert few["masking"]["kind"] == "random" and few["places"] == 2 * few["pictures"]
    assert few["loss"] != own["loss"]
    other = measured(run, "--split", "all", data=photos(tmp_path / "photos", 9, 3))
    assert other["pictures"] == 12 and other["unreadable"] == 0
    everywhere = measured(run, "--masking.kind", "none")
    assert everywhere["places"] == 16 * own["pictures"]


def test_the_codes_of_one_picture_alone_are_those_it_has_among_others(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU it would go through other kernels, and its logits differ in their last bits."""
    asked: list[int] = []
    codes = DiscreteVAE.codes

    def noted(model: DiscreteVAE, images: Tensor) -> Tensor:
        asked.append(len(images))
        return codes(model, images)

    monkeypatch.setattr(DiscreteVAE, "codes", noted)
    found = measured(runs / "tokens", "--split", "all", data=photos(tmp_path / "one", 1, 0))
    assert found["pictures"] == 1 and asked and 1 not in asked


def test_two_runs_are_compared_under_the_same_masks(runs: Path, tmp_path: Path) -> None:
    """Baselines tell: they are of the pictures and the masks alone."""
    tokenizer = runs / "tokens" / "tokenizer"
    words = pretraining(tmp_path / "random", masking__kind="random")
    assert beit(*words, "--tokenizer", tokenizer).status == 0
    theirs = measured(tmp_path / "random", "--masking.kind", "blockwise")
    for name in ("places", "neighbour_copy_accuracy", "constant_loss"):
        assert theirs[name] == measured(runs / "tokens")[name]


def test_two_processes_find_the_same(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", runs / "pixels", "--data", "digits", "--json"]
    assert beit(*words, "--processes", 2).status == 0
    shared = json.loads(capfd.readouterr().out.splitlines()[-1])
    alone = measured(runs / "pixels")
    assert shared.pop("loss") == pytest.approx(alone["loss"], rel=1e-6)
    for name in ("zero_loss", "neighbour_copy_loss", "mean_colour_loss", "constant_loss"):
        assert shared[name] == pytest.approx(alone[name], rel=1e-12), name
    assert shared["places"] == alone["places"]


def test_people_see_a_table(runs: Path) -> None:
    tokens = beit("evaluate", runs / "tokens", "--data", "digits").out
    assert "most frequent code" in tokens and "kind blockwise" in tokens
    assert (
        "copy the nearest visible patch"
        in beit("evaluate", runs / "pixels", "--data", "digits").out
    )


def test_from_python(runs: Path) -> None:
    found = evaluate(runs / "pixels", "digits", quiet=True, changes={"masking": {"kind": "random"}})
    assert found["masking"]["kind"] == "random"


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert all(word in outcome.complaint for word in words), outcome.complaint


def test_what_cannot_be_measured_is_refused(runs: Path, tmp_path: Path) -> None:
    def told(run: Path, *words: object) -> Outcome:
        return beit("evaluate", run, "--data", "digits", *words)

    tokens = runs / "tokens"
    refused(told(tokens, "--optim.lr", 1), "evaluate does not take '--optim.lr")
    refused(told(tokens, "--masking.kynd", "random"), "--masking.kynd", "--masking.kind?")
    refused(told(tokens, "--masking.ratio", 2), "masking.ratio cannot be 2")
    refused(told(tokens, "--masking.ratio"), "needs a value")
    refused(told(tokens, "--flip"), "for segmenters")
    refused(told(tokens, "--split", "test"), "--split test")
    refused(told(tokens / "tokenizer"), "holds a tokenizer")
    bare = tmp_path / "bare"
    shutil.copytree(tokens, bare)
    shutil.rmtree(bare / "tokenizer")
    refused(told(bare), f"{bare / 'tokenizer'} is not there")
    assert beit(*tokenizing(bare / "tokenizer", engine__seed=7)).status == 0
    refused(told(bare), f"{bare / 'tokenizer'} is not the tokenizer")
    (bare / "recipe.yaml").unlink()
    refused(told(bare), "recipe.yaml")


def test_a_classifier_has_no_masks(runs: Path, tmp_path: Path) -> None:
    data, run = coloured(tmp_path / "coloured"), tmp_path / "run"
    assert beit(*classifying(run, data, runs / "tokens")).status == 0
    refused(beit("evaluate", run, "--data", data, "--masking.kind", "random"), "pre-trainings")
