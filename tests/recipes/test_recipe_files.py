"""A run or a recipe's file where a name is wanted: read as data, checked like any input."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import beit as package
from beit.errors import UserError
from beit.files import sha256_of
from beit.recipes.catalogue import recipe_named, wanted_tokenizer_recipe
from beit.recipes.named import pretrain_recipe
from beit.recipes.recipe_files import recipe_in
from commands.recipe_runs import beit, pretraining


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("files") / "run"
    outcome = beit(*pretraining(out, optim__lr=2e-3))
    assert outcome.status == 0, outcome.err
    return out


def test_a_run_is_made_again_from_its_folder(run: Path, tmp_path: Path) -> None:
    """Bitwise, by the folder and by the file; a tokenizer's too, from either recipe."""
    where = ["--data", "digits", "--device", "cpu", "--out"]
    for spec, out in ((run, tmp_path / "a"), (run / "recipe.yaml", tmp_path / "b")):
        outcome = beit("pretrain", spec, *where, out)
        assert outcome.status == 0, outcome.err
        for name in ("model.safetensors", "recipe.yaml"):
            assert sha256_of(out / name) == sha256_of(run / name)
    for number, spec in enumerate((run, run / "tokenizer")):
        out = tmp_path / f"t{number}"
        assert beit("tokenizer", spec, *where, out).status == 0
        name = "model.safetensors"
        assert sha256_of(out / name) == sha256_of(run / "tokenizer" / name)


def test_it_can_be_shown_changed_and_asked_for_from_python(run: Path) -> None:
    outcome = beit("recipes", "show", run, "--optim.steps", 7, "--json")
    assert outcome.result["recipe"]["optim"]["steps"] == 7
    assert outcome.result["recipe"]["optim"]["lr"] == 2e-3
    assert f"as in {run}" in beit("recipes", "show", run).out
    recipe = package.recipe(run, {"optim.steps": 9})
    assert (recipe.optim.steps, recipe.optim.lr) == (9, 2e-3)
    assert package.recipe(str(run / "recipe.yaml")) == package.recipe(run)
    assert wanted_tokenizer_recipe(run) == recipe.tokenizer


def test_a_name_is_a_name_whatever_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert recipe_named("digits") == ("pretrain", pretrain_recipe("digits"))


def test_fields_that_came_later_are_as_runs_had_them(run: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    del tree["tokens"], tree["tokenizer"]["optim"]["schedule"]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(tree))
    old = recipe_in(tmp_path / "old.yaml")
    assert old.model_dump()["tokens"]["precision"] == "float32"  # now it would be auto
    assert old.model_dump()["tokenizer"]["optim"]["schedule"] == "cosine"


def changed(run: Path, **fields: Any) -> str:
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    return str(yaml.safe_dump({**tree, **fields}))


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nname: [*b, *b]\n"
WRONG = {
    "no YAML": ("{", "cannot be read as a recipe"),
    "too deep": ("[" * 5000, "cannot be read as a recipe"),
    "a list": ("- 1", "is not a recipe"),
    "a bomb": (BOMB, "YAML alias"),
    "a program": ("!!python/object/apply:os.system [exit]", "cannot be read as a recipe"),
    "another's fields": ("learning_rate: 1", "there is no"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_recipe_is_one_sentence(name: str, tmp_path: Path) -> None:
    text, expected = WRONG[name]
    file = tmp_path / "r.yaml"
    file.write_text(text)
    outcome = beit("pretrain", file, "--data", "digits", "--out", tmp_path / "run")
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert str(file) in outcome.complaint and expected in outcome.complaint
    assert not (tmp_path / "run").exists()


def test_impossible_values_and_missing_groups_are_named(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(changed(run, more=1))
    with pytest.raises(UserError, match=r"r\.yaml: there is no recipe field more"):
        recipe_in(file)
    file.write_text(changed(run, masking={"ratio": 3}))
    with pytest.raises(UserError, match=r"masking\.ratio cannot be 3"):
        recipe_in(file)
    tree = json.loads(json.dumps(yaml.safe_load(changed(run))))
    del tree["optim"]
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"r\.yaml: there is no optim$"):
        recipe_in(file)


def test_another_tasks_recipe_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases: list[tuple[str, object, str]] = [
        ("classify", run, "is a recipe of beit pretrain, and beit classify wants one of its own"),
        ("pretrain", run / "tokenizer", "is a recipe of beit tokenizer"),
        ("pretrain", tmp_path / "empty", "is not a run folder"),
        ("pretrain", tmp_path / "none.yaml", "there is no recipe"),
        ("pretrain", "digit", "did you mean digits?"),
    ]
    for command, spec, expected in cases:
        more = ["--init", "none"] if command == "classify" else []
        words = [command, spec, "--data", "digits", "--out", tmp_path / "run", *more]
        outcome = beit(*words)
        assert outcome.status == 2 and expected in outcome.complaint, outcome.err
