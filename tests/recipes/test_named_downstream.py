"""The named recipes of fine-tuning are the paper's and the reference's rows."""

from typing import Any, Literal

import pytest

from beit.commands.looking.inspection import show_recipe
from beit.recipes.catalogue import list_recipes
from beit.recipes.named_downstream import CLASSIFY, SEGMENT, classify_recipe, segment_recipe
from commands.recipe_runs import beit

IMAGENET_1K = 1_281_167
# name: rate, epochs, warm-up, batch, layer decay, drop path, weight decay, mixup, cutmix
ROWS: dict[str, tuple[float, ...]] = {
    "base": (4e-3, 100, 20, 1024, 0.65, 0.1, 0.05, 0.8, 1.0),
    "large": (1e-3, 50, 5, 1024, 0.75, 0.2, 0.05, 0.8, 1.0),
    "base-after-intermediate": (2e-5, 30, 5, 512, 0.85, 0.1, 1e-8, 0.0, 0.0),
    "large-after-intermediate": (2e-5, 30, 5, 512, 0.9, 0.4, 1e-8, 0.0, 0.0),
    "base-intermediate": (3e-3, 90, 5, 4096, 0.65, 0.2, 0.05, 0.0, 0.0),
    "large-intermediate": (2e-3, 90, 5, 2048, 0.75, 0.2, 0.05, 0.0, 0.0),
    "cifar100": (3e-3, 150, 20, 512, 0.65, 0.1, 0.3, 0.8, 1.0),
}


@pytest.mark.parametrize("name", ROWS)
def test_classification_rows(name: str) -> None:
    recipe = classify_recipe(name)
    optim = recipe.optim
    assert ROWS[name] == (
        *(optim.scaled_lr, optim.epochs, optim.warmup_epochs, optim.batch),
        *(recipe.tuning.layer_decay, recipe.encoder.drop_path, optim.weight_decay),
        *(recipe.mixing.mixup, recipe.mixing.cutmix),
    )
    assert (optim.scaled_min_lr, recipe.mixing.label_smoothing) == (1e-6, 0.1)
    assert recipe.views.auto_augment == "rand-m9-mstd0.5-inc1"
    assert recipe.views.erasing == (0.0 if name == "cifar100" else 0.25)
    assert recipe.views.centre_share == 224 / 256 and recipe.tuning.pool == "mean"
    assert optim.clip == {"base-intermediate": 3.0, "large-intermediate": 1.0}.get(name)
    assert recipe.encoder.size == ("large" if name.startswith("large") else "base")


def test_higher_resolution_is_ten_epochs_of_whole_pictures() -> None:
    recipe = classify_recipe("base-384")
    assert (recipe.encoder.image_size, recipe.optim.epochs) == ((384, 384), 10)
    assert recipe.views.centre_share == 1.0


@pytest.mark.parametrize(
    ("name", "rate", "decay", "kind", "size"),
    [
        ("base", 1e-3, 0.65, "pup", 512),
        ("base-upernet", 7e-4, 0.65, "upernet", 512),
        ("base-upernet-after-intermediate", 3e-5, 0.9, "upernet", 640),
    ],
)
def test_segmentation_rows(name: str, rate: float, decay: float, kind: str, size: int) -> None:
    recipe = segment_recipe(name)
    optim = recipe.optim
    assert (optim.steps, optim.warmup_steps, optim.batch) == (160_000, 1500, 16)
    assert (optim.scaled_lr, optim.schedule, optim.weight_decay) == (rate, "linear", 0.05)
    assert (recipe.layer_decay, recipe.decoder.kind, recipe.encoder.drop_path) == (decay, kind, 0.1)
    assert recipe.encoder.image_size == (size, size) and recipe.decoder.auxiliary_weight == 0.4
    assert recipe.data.reduce_zero_label and recipe.inference.stride_share == pytest.approx(2 / 3)


def test_every_recipe_is_listed_named_and_counted() -> None:
    listed = list_recipes()
    tables: dict[str, Any] = {"classify": CLASSIFY, "segment": SEGMENT}
    for task, table in tables.items():
        assert list(listed[task]) == list(table)
        for name, make in table.items():
            assert make().name == name and len(listed[task][name]) > 20


def test_a_base_classifier_counts_as_many_parameters_as_the_paper_s() -> None:
    shown = show_recipe("base", [], task="classify", quiet=True)
    # ViT-B/16 has 86,567,656 with a key bias in each of 12 layers.
    assert shown["parameters"] == 86_567_656 - 12 * 768
    assert shown["gflop_per_picture"]["forward"] == pytest.approx(35.13, abs=0.1)


def test_a_fine_tuning_is_counted_with_a_bias_table_a_block_as_it_is_trained() -> None:
    shared, heads, depth = (2 * 8 - 1) ** 2 + 3, 3, 6
    cases: list[tuple[Literal["classify", "segment"], list[str]]] = [
        ("classify", []),
        ("segment", ["--encoder.image_size", "64"]),
    ]
    for task, changes in cases:
        shown, none = (
            show_recipe("tiny", [*changes, *more], task=task, quiet=True)
            for more in ((), ("--encoder.relative_positions", "none"))
        )
        assert shown["resolved_encoder"]["relative_positions"] == "per-layer"
        assert shown["parameters"] - none["parameters"] == depth * heads * shared


def test_the_nearest_recipe_is_named() -> None:
    for task, wrong, right in (("classify", "cifar10", "cifar100"), ("segment", "bse", "base")):
        words = [task, wrong, "--data", "x", "--out", "y", "--init", "none"]
        outcome = beit(*words)
        assert outcome.status == 2 and f"did you mean {right}?" in outcome.complaint
