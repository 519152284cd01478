"""Continued pre-training from the command line: what it goes on from, keeps, and refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from beit.commands.assembly.saved_models import load
from beit.files import sha256_of
from beit.nn.masked_image_model import MaskedImageModel
from commands.fine_tuning_runs import classifying, coloured
from commands.recipe_runs import beit, photos, pretraining, rows_of, stopped

HEAD = {"head.norm.weight", "head.norm.bias", "head.output.weight", "head.output.bias"}
STILL: dict[str, Any] = {"optim__lr": 1e-9, "optim__steps": 1}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training with a bias table that all blocks share."""
    out = tmp_path_factory.mktemp("given") / "run"
    outcome = beit(*pretraining(out, encoder__preset="plus"))
    assert outcome.status == 0, outcome.err
    return out


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that the given model has not seen."""
    return photos(tmp_path_factory.mktemp("other") / "photos")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def test_goes_on_with_encoder_head_and_tokenizer(given: Path, tmp_path: Path) -> None:
    """One step that learns nothing: all is as it was, the measurements included."""
    out = tmp_path / "run"
    # The recipe's own preset would have absolute positions: the given model's are followed.
    outcome = beit(*pretraining(out, **STILL), "--init", given)
    assert outcome.status == 0, outcome.err
    record = json.loads((out / "initial.json").read_text())
    assert record["init"] == str(given) and record["not_used"] == []
    assert HEAD < set(record["used"]) == set(weights(given))
    for name, value in weights(out).items():
        torch.testing.assert_close(value, weights(given)[name], atol=1e-6, rtol=0)
    assert "shared_bias_table" in "".join(weights(out))
    same = [sha256_of(run / "tokenizer" / "model.safetensors") for run in (given, out)]
    assert same[0] == same[1] and not (out / "tokenizer" / "recipe.yaml").exists()
    before, after = (rows_of(run, "val")[-1] for run in (given, out))
    assert after["loss"] == pytest.approx(before["loss"], abs=1e-5)


def test_all_of_it_is_trained_on_other_pictures(given: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fields = {"optim__batch": 8, "optim__lr": 1e-2}
    outcome = beit(*pretraining(out, other, **fields), "--init", given)
    assert outcome.status == 0, outcome.err
    still = [name for name, value in weights(out).items() if value.equal(weights(given)[name])]
    assert still == [], "among them what stands in for masked patches"
    page = beit("report", out)
    assert page.status == 0 and str(given) in (out / "report.html").read_text()


def test_another_tokenizer_gets_a_fresh_head(given: Path, tmp_path: Path) -> None:
    """As many codes, but what they mean is another matter."""
    another = tmp_path / "another"
    assert beit(*pretraining(another, engine__seed=5, tokenizer__engine__seed=5)).status == 0
    out = tmp_path / "run"
    words = ["--init", given, "--tokenizer", another / "tokenizer"]
    outcome = beit(*pretraining(out, **STILL), *words)
    assert outcome.status == 0 and "not used: 4 of its head" in outcome.err, outcome.err
    assert set(json.loads((out / "initial.json").read_text())["not_used"]) == HEAD
    head = "head.output.weight"
    assert (weights(out)[head] - weights(given)[head]).abs().max() > 1e-3


def test_goes_on_from_a_classifier_at_another_size(
    given: Path, other: Path, tmp_path: Path
) -> None:
    """What fine-tuning left: a bias table a block, and no head for tokens."""
    labelled = coloured(tmp_path / "coloured")
    classifier, out = tmp_path / "classifier", tmp_path / "run"
    assert beit(*classifying(classifier, labelled, given)).status == 0
    fields = {"optim__batch": 8, "encoder__image_size": [24, 24]}
    outcome = beit(*pretraining(out, other, **fields), "--init", classifier)
    assert outcome.status == 0, outcome.err
    assert "2 relative tables resized" in outcome.err
    model = load(out)
    assert isinstance(model, MaskedImageModel)
    assert model.encoder.config.relative_positions == "per-layer"
    assert model.encoder.config.image_size == (24, 24)


def test_resuming_is_bitwise_and_from_the_same_start(given: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert beit(*pretraining(whole), "--init", given).status == 0
    words = [*pretraining(broken), "--init", str(given)]
    assert stopped(words, "PretrainTask", 2).status == 143
    for init in ([], ["--init", str(tmp_path)]):
        outcome = beit(*pretraining(broken), *init, "--resume")
        assert outcome.status == 2 and f"began from {given}" in outcome.complaint
    outcome = beit(*words, "--resume")
    assert outcome.status == 0, outcome.err
    for name in ("model.safetensors", "metrics.jsonl", "initial.json"):
        assert sha256_of(whole / name) == sha256_of(broken / name)


def test_a_run_stopped_in_its_tokenizer_remembers_its_start(
    given: Path, other: Path, tmp_path: Path
) -> None:
    classifier, out = tmp_path / "classifier", tmp_path / "run"  # has no tokenizer beside it
    assert beit(*classifying(classifier, coloured(tmp_path / "coloured"), given)).status == 0
    fields = {"optim__batch": 8, "tokenizer__optim__batch": 8}
    words = [*pretraining(out, other, **fields), "--init", str(classifier)]
    assert stopped(words, "TokenizeTask", 2).status == 143
    outcome = beit(*pretraining(out, other, **fields), "--resume")
    assert outcome.status == 2 and f"began from {classifier}" in outcome.complaint
    outcome = beit(*words, "--resume")
    assert outcome.status == 0, outcome.err


def test_a_run_that_began_from_nothing_stays_so(given: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert stopped(pretraining(out), "PretrainTask", 2).status == 143
    outcome = beit(*pretraining(out), "--init", given, "--resume")
    assert outcome.status == 2 and "began from none" in outcome.complaint
    assert beit(*pretraining(out), "--resume").status == 0


@pytest.mark.parametrize("target", ["pixels", "tokens"])
def test_a_head_for_something_else_is_refused(given: Path, tmp_path: Path, target: str) -> None:
    """Of another program: ours save no such model."""
    model, theirs = load(given), tmp_path / "theirs"
    shutil.copytree(given, theirs)
    assert isinstance(model, MaskedImageModel)
    tensors = {
        name: value[:7] if name.startswith("head.output") else value
        for name, value in model.state_dict().items()
    }
    save_file(tensors, theirs / "model.safetensors")
    config = json.loads((given / "config.json").read_text())
    config["head"] = {"target": target, "outputs": 7}
    config["tokenizer"] = config["tokenizer"] if target == "tokens" else ""
    (theirs / "config.json").write_text(json.dumps(config))
    words = pretraining(tmp_path / "run", objective__target=target)
    outcome = beit(*words, "--init", theirs)
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert f"{theirs} has a head with 7 outputs" in outcome.complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "init", "words"),
    [
        ({"encoder__width": 32}, "", ["width is 16, not 32"]),
        ({"encoder__relative_positions": "none"}, "", ["relative positions"]),
        ({}, "tokenizer", ["tokenizer"]),
        ({}, "nothing", ["there is no", "--init none"]),
    ],
)
def test_refusals_before_anything_is_made(
    given: Path, tmp_path: Path, fields: dict[str, Any], init: str, words: list[str]
) -> None:
    outcome = beit(*pretraining(tmp_path / "run", **fields), "--init", given / init)
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert all(word in outcome.complaint for word in words), outcome.complaint
    assert not (tmp_path / "run").exists()
