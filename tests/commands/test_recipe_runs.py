"""Whole runs: what they leave behind, and that it can be read again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from beit.commands.assembly import stage
from beit.commands.assembly.build import mask_plan
from beit.commands.assembly.saved_models import load
from beit.errors import UserError
from beit.files import sha256_of
from beit.nn.masked_image_model import MaskedImageModel
from beit.recipes.models import PretrainRecipe
from beit.tokenizer.dvae import DiscreteVAE
from commands.recipe_runs import beit, ends_of, photos, pretraining, rows_of, tokenizing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training on the digits that trained its own tokenizer."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    outcome = beit(*pretraining(folder))
    assert outcome.status == 0, outcome.err
    (folder.parent / "result.json").write_text(outcome.out.splitlines()[-1])
    return folder


def read_back(run: Path) -> PretrainRecipe:
    return PretrainRecipe.model_validate(yaml.safe_load((run / "recipe.yaml").read_text()))


def test_a_run_folder_holds_everything(run: Path) -> None:
    for folder in (run, run / "tokenizer"):
        names = {path.name for path in folder.iterdir()}
        files = ("recipe.yaml", "metrics.jsonl", "log.txt", "source.json", "result.json")
        assert names >= {*files, "tensorboard", "checkpoints", "model.safetensors", "config.json"}
        assert not [name for name in names if ".tmp" in name]


def test_json_ends_with_the_result(run: Path) -> None:
    told = json.loads((run.parent / "result.json").read_text())
    assert told == json.loads((run / "result.json").read_text())
    assert (told["recipe"], told["steps"], told["samples_seen"]) == ("digits", 4, 4 * 48)
    assert told["model_sha256"] == sha256_of(run / "model.safetensors")
    assert {"accuracy", "most_frequent_accuracy", "bits_saved"} <= set(told["validation"])


def test_the_recipe_is_written_whole(run: Path) -> None:
    recipe = read_back(run)
    assert (recipe.encoder.width, recipe.tokenizer.model.vocabulary) == (16, 8)


def test_each_step_has_one_row(run: Path) -> None:
    for folder in (run, run / "tokenizer"):
        assert [row["step"] for row in rows_of(folder)] == [1, 2, 3, 4]
        assert [row["samples_seen"] for row in rows_of(folder)] == [48, 96, 144, 192]
        assert [row["step"] for row in rows_of(folder, "val")] == [4]


def test_both_models_load(run: Path) -> None:
    model, tokenizer = load(run), load(run / "tokenizer")
    assert isinstance(model, MaskedImageModel) and isinstance(tokenizer, DiscreteVAE)
    assert not model.training and not tokenizer.training
    assert model.head.output.out_features == tokenizer.vocabulary == 8
    assert model.encoder.config.image_size == (16, 16)
    with torch.no_grad():
        assert model.encoder(torch.zeros(2, 3, 16, 16)).tokens.shape == (2, 17, 16)
        assert tokenizer.codes(torch.zeros(2, 3, 16, 16)).shape == (2, 4, 4)


def test_the_same_again_is_the_same(run: Path, tmp_path: Path) -> None:
    assert beit(*pretraining(tmp_path / "again")).status == 0
    assert ends_of(tmp_path / "again") == ends_of(run)


def test_another_seed_is_another(run: Path, tmp_path: Path) -> None:
    words = pretraining(tmp_path / "other", engine__seed=1)
    assert beit(*words, "--tokenizer", run / "tokenizer").status == 0
    name = "model.safetensors"
    assert sha256_of(tmp_path / "other" / name) != sha256_of(run / name)


def test_a_finished_run_resumes_to_itself(run: Path) -> None:
    before = ends_of(run)
    outcome = beit(*pretraining(run), "--resume")
    assert outcome.status == 0 and ends_of(run) == before
    assert outcome.result == json.loads((run / "result.json").read_text())
    moved = beit(*pretraining(run, engine__save_every=3, tokenizer__engine__keep=5), "--resume")
    assert moved.status == 0 and ends_of(run) == before


def test_a_given_tokenizer_is_copied_and_gives_the_same_model(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert beit(*pretraining(out), "--tokenizer", run / "tokenizer").status == 0
    copied = {path.name for path in (out / "tokenizer").iterdir()}
    assert copied == {"model.safetensors", "config.json"}
    for name in ("model.safetensors", "tokenizer/model.safetensors", "metrics.jsonl"):
        assert sha256_of(out / name) == sha256_of(run / name), name
    assert beit(*pretraining(out), "--resume").status == 0  # the copy is enough
    other = tmp_path / "other"
    assert beit(*tokenizing(other, engine__seed=5)).status == 0
    refused = beit(*pretraining(out), "--resume", "--tokenizer", other)
    assert refused.status == 2 and "another tokenizer" in refused.complaint
    refused = beit(*pretraining(tmp_path / "new"), "--tokenizer", run)
    assert refused.status == 2 and "holds a pre-trained model" in refused.complaint
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_alone(tmp_path: Path, run: Path) -> None:
    outcome = beit(*tokenizing(tmp_path / "t"))
    assert outcome.status == 0
    assert (outcome.result["vocabulary"], outcome.result["grid"]) == (8, [4, 4])
    assert outcome.result["model_sha256"] == sha256_of(run / "tokenizer" / "model.safetensors")


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    """40 pictures, more a step than there are: 38 to train on, 2 to measure on."""
    folder = photos(tmp_path / "photos")
    outcome = beit(*pretraining(tmp_path / "run", folder))
    assert outcome.status == 0, outcome.err
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["epoch"] == pytest.approx(4 * 48 / 38)
    assert outcome.result["validation"]["pictures"] == 2
    assert not (tmp_path / "run" / "bad_pictures.jsonl").exists()


def test_averaged_weights_are_what_is_saved(run: Path, tmp_path: Path) -> None:
    words = [*pretraining(tmp_path / "run", optim__ema=0.9), "--tokenizer", str(run / "tokenizer")]
    assert beit(*words).status == 0
    plain, averaged = load(run), load(tmp_path / "run")
    differing = [
        name
        for name, value in plain.state_dict().items()
        if not value.equal(averaged.state_dict()[name])
    ]
    assert len(differing) > 10
    assert [row["loss"] for row in rows_of(run)] == [
        row["loss"] for row in rows_of(tmp_path / "run")
    ]


ABLATIONS: dict[str, dict[str, object]] = {
    "paper": {"encoder__preset": "paper", "masking__kind": "blockwise-paper"},
    "plus": {"encoder__preset": "plus", "encoder__drop_path": 0.1},
    "random": {"masking__kind": "random", "masking__ratio": 0.6, "masking__exact": True},
    "all tokens": {"objective__places": "all"},
    "no masking": {"objective__places": "all", "masking__kind": "none"},
    "pixels": {"objective__target": "pixels"},
    "pixels, all": {"objective__target": "pixels", "objective__places": "all"},
    "rectangular": {"encoder__image_size": [16, 24], "encoder__patch_size": [4, 8]},
    "checkpointing, bfloat16": {"encoder__checkpointing": True, "engine__precision": "bfloat16"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_are_fields(run: Path, tmp_path: Path, name: str) -> None:
    words = pretraining(tmp_path / "run", optim__steps=2, optim__batch=16, **ABLATIONS[name])
    if not name.startswith("pixels"):
        words += ["--tokenizer", str(run / "tokenizer")]
    outcome = beit(*words)
    assert outcome.status == 0, outcome.err
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2]
    model = load(tmp_path / "run")
    assert isinstance(model, MaskedImageModel)
    recipe = read_back(tmp_path / "run")
    plan, patches = mask_plan(recipe), model.encoder.config.patches
    assert (plan.capacity == patches) == (recipe.objective.places == "all")
    if name.startswith("pixels"):
        assert model.head.output.out_features == 4 * 4 * 3
        assert not (tmp_path / "run" / "tokenizer").exists()
    measured = outcome.result["validation"]
    if name == "no masking":
        assert measured["places"] == 359 * patches
    else:  # at masked places, whatever the loss reads: the baselines mean nothing elsewhere
        at_most = 359 * replace(plan, recover="masked").capacity
        assert 0 < measured["places"] <= at_most < 359 * patches


def test_a_warm_up_longer_than_the_run_is_cut_to_it(tmp_path: Path) -> None:
    assert beit(*tokenizing(tmp_path / "t", optim__warmup_steps=1000)).status == 0
    rates = [row["lr"] for row in rows_of(tmp_path / "t")]
    assert rates == sorted(rates) and rates[0] == 0 < rates[-1]


@pytest.mark.parametrize("compiles", [True, False])
def test_a_card_is_looked_at_before_anything_is_compiled(
    compiles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else our attention kernels would first be tried in the midst of torch's compiler."""
    looked: list[torch.device] = []

    def stop(*_: object, **__: object) -> None:
        raise UserError("before the first step")

    monkeypatch.setattr(stage, "look_at", looked.append)
    monkeypatch.setattr(stage, "fit", stop)
    outcome = beit(*tokenizing(tmp_path / "run"), engine__compile=compiles)
    assert outcome.complaint == "before the first step"
    assert looked == [torch.device("cpu")] * compiles
