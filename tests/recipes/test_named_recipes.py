"""The named recipes are the paper's where they say so, and cost what was counted."""

import math
from dataclasses import fields

import pytest

from beit.commands.looking.inspection import show_recipe
from beit.data.views.views import ViewSettings
from beit.recipes.catalogue import list_recipes
from beit.recipes.models import PretrainRecipe, RelaxationRecipe, TokenizerRecipe, ViewRecipe
from beit.recipes.named import RECIPES, pretrain_recipe, tokenizer_recipe
from beit.recipes.overrides import dotted_names, replace
from beit.tasks.tokenize import TokenizeSettings
from commands.recipe_runs import beit

IMAGENET_1K = 1_281_167


def test_names() -> None:
    for_images = ["digits", "tiny", "small", "base", "large", "base-plus", "large-plus"]
    assert list(RECIPES) == [*for_images, "base-plus-22k", "large-plus-22k"]
    for name in RECIPES:
        assert pretrain_recipe(name).name == name
        assert list_recipes()["pretrain"][name].endswith((".", ","))
        assert isinstance(tokenizer_recipe(name), TokenizerRecipe)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("base", 92_089_856), ("base-plus", 91_965_776), ("large-plus", 311_534_016)],
)
def test_parameters_are_those_of_the_paper_and_the_reference(name: str, parameters: int) -> None:
    assert show_recipe(name, [], quiet=True)["parameters"] == parameters


@pytest.mark.parametrize(
    ("name", "words", "forward", "both"),
    [
        ("base", [], 36.07, 107.98),
        ("base-plus", ["--objective.places", "all"], 37.59, 112.55),
        ("large-plus", [], 124.37, 372.79),
        ("large", ["--objective.places", "all"], 126.40, 378.88),
    ],
)
def test_work_is_as_counted_by_hand(
    name: str, words: list[str], forward: float, both: float
) -> None:
    work = show_recipe(name, words, quiet=True)["gflop_per_picture"]
    assert work["forward"] == pytest.approx(forward, abs=0.02)
    assert work["forward_and_backward"] == pytest.approx(both, abs=0.02)
    assert work["step"] == pytest.approx(work["forward_and_backward"] + work["tokenizer"])


def test_the_tokenizer_of_dalle_can_be_asked_for() -> None:
    shown = show_recipe("base", ["--tokenizer.model.preset", "dalle"], quiet=True)
    assert shown["gflop_per_picture"]["tokenizer"] == pytest.approx(52.12, abs=0.02)
    assert shown["tokenizer_parameters"] == pytest.approx(53.8e6 + 43.8e6, rel=0.01)
    assert shown["resolved_tokenizer"]["vocabulary"] == 8192


@pytest.mark.parametrize("name", ["base-plus", "large-plus"])
def test_imagenet_22k_is_trained_as_in_the_reference(name: str) -> None:
    """14,197,087 pictures: the schedule is another, and nothing else is."""
    recipe, usual = pretrain_recipe(f"{name}-22k"), pretrain_recipe(name)
    assert recipe.optim.warmup(14_197_087) == 10_000
    assert recipe.optim.total_steps(14_197_087) == math.ceil(150 * 14_197_087 / 2048)
    same = {"optim.epochs": 800, "optim.warmup_steps": None, "name": name}
    assert replace(recipe, same) == usual


def test_base_and_large_are_trained_as_in_the_paper() -> None:
    for recipe, clip in ((pretrain_recipe("base"), 3.0), (pretrain_recipe("large"), 1.0)):
        optim = recipe.optim
        assert (optim.batch, optim.scaled_lr, optim.scaled_min_lr) == (2048, 1.5e-3, 1e-5)
        assert (optim.weight_decay, optim.betas, optim.eps) == (0.05, (0.9, 0.999), 1e-8)
        assert (optim.clip, recipe.encoder.drop_path) == (clip, 0.1)
        assert optim.total_steps(IMAGENET_1K) == 500_456  # 800 epochs
        assert optim.warmup(IMAGENET_1K) == 6_256  # 10 epochs
        assert (recipe.masking.kind, recipe.masking.count) == ("blockwise", 75)
        assert recipe.views == ViewRecipe(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), jitter=0.4)
        assert (recipe.encoder.preset, recipe.encoder.image_size) == ("paper", (224, 224))


def test_defaults_are_said_once() -> None:
    """A recipe's defaults are those of what it sets."""
    pairs: list[tuple[type[ViewRecipe | RelaxationRecipe], type]] = [
        (RelaxationRecipe, TokenizeSettings),
        (ViewRecipe, ViewSettings),
    ]
    for model, settings in pairs:
        theirs = {field.name: field.default for field in fields(settings)}
        ours = {name: field.default for name, field in model.model_fields.items()}
        assert ours == {name: theirs[name] for name in ours}
    assert set(RelaxationRecipe.model_fields) == {f.name for f in fields(TokenizeSettings)}


def test_a_length_in_epochs_or_steps() -> None:
    base = pretrain_recipe("base").optim
    assert base.model_copy(update={"epochs": 0.001}).total_steps(100) == 1
    assert base.model_copy(update={"epochs": 2, "batch": 30}).total_steps(100) == 7
    assert base.model_copy(update={"steps": 5}).total_steps(10**9) == 5
    short = base.model_copy(update={"steps": 5, "warmup_steps": 9})
    assert short.warmup(100) == 5


def test_every_field_is_documented_and_shown() -> None:
    shown = beit("recipes", "show", "digits").out
    for name, _, description in dotted_names(pretrain_recipe("digits")):
        assert len(description) > 10 and f"  --{name} " in shown and description in shown


def test_showing_takes_changes_and_says_what_they_cost() -> None:
    small, large = (
        beit("recipes", "show", "digits", "--json", encoder__depth=depth).result for depth in (1, 3)
    )
    assert PretrainRecipe.model_validate(large["recipe"]).encoder.depth == 3
    assert large["resolved_encoder"]["depth"] == 3
    block, width = large["parameters"] - small["parameters"], large["resolved_encoder"]["width"]
    assert block == 2 * (12 * width**2 + 12 * width)  # the key has no bias
