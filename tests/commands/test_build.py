"""From a recipe's words to what the device gets."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from beit.commands.assembly import build
from beit.commands.assembly.build import (
    choose_compilation,
    choose_precision,
    evaluation_workers,
    fit_settings,
    loader_settings,
    mask_plan,
)
from beit.commands.assembly.initial import start_from
from beit.engine.distribution import World
from beit.engine.fit import _deterministic
from beit.engine.settings import FitSettings, promise_repeatable_products
from beit.recipes.downstream_models import ClassifyRecipe
from beit.recipes.models import DataRecipe, EngineRecipe, OptimRecipe
from beit.recipes.named import pretrain_recipe, tokenizer_recipe
from beit.recipes.named_downstream import classify_recipe
from beit.recipes.overrides import replace


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_bfloat16_where_the_card_multiplies_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated bfloat16, which torch counts as supported unless told otherwise, is slower."""

    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    expected = "bfloat16" if native else "float32"
    assert choose_precision("auto", torch.device("cuda")) == expected
    assert choose_precision("bfloat16", torch.device("cuda")) == "bfloat16"


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_bfloat16_where_the_processor_multiplies_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == ("bfloat16" if native else "float32")
    assert choose_precision("bfloat16", cpu) == "bfloat16"
    assert choose_precision("float32", cpu) == "float32"


def test_every_rate_of_a_run_scales_with_its_batch() -> None:
    """The first after the warm-up, and the last; `base_batch` is what they are meant for."""
    recipe = replace(classify_recipe("digits"), {"optim.base_batch": 64, "optim.min_lr": 1e-5})
    rates = {}
    for batch in (64, 16):
        optim = replace(recipe, {"optim.batch": batch}).optim
        found = fit_settings(optim, recipe.engine, 1000, torch.device("cpu"))
        rates[batch] = np.array([found.learning_rate, found.minimum_rate])
    np.testing.assert_allclose(rates[64], [recipe.optim.lr, 1e-5])
    np.testing.assert_allclose(rates[16], rates[64] / 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("masking.kind", "random"),
        ("masking.ratio", 0.3),
        ("masking.count", 20),
        ("masking.minimum_block", 3),
        ("masking.exact", True),
        ("objective.places", "all"),
    ],
)
def test_every_word_about_masks_reaches_them(name: str, value: object) -> None:
    recipe = pretrain_recipe("tiny")
    assert mask_plan(replace(recipe, {name: value})) != mask_plan(recipe)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("optim.lr", 0.5),
            ("optim.base_batch", 128),
            ("optim.batch", 16),
            ("optim.min_lr", 1e-4),
        ),
        *(("optim.steps", 70), ("optim.warmup_steps", 7), ("optim.schedule", "linear")),
        *(("optim.weight_decay", 0.3), ("optim.betas", (0.8, 0.9)), ("optim.eps", 1e-4)),
        *(("optim.clip", 0.7), ("optim.ema", 0.9), ("optim.accumulate", 2)),
        *(("engine.seed", 3), ("engine.deterministic", True), ("engine.log_every", 3)),
        *(("engine.save_every", 3), ("engine.keep", 4), ("engine.evaluate_every", 3)),
    ],
)
def test_every_word_about_training_reaches_the_loop(name: str, value: object) -> None:
    def settings(recipe: ClassifyRecipe) -> FitSettings:
        return fit_settings(recipe.optim, recipe.engine, 1000, torch.device("cpu"))

    recipe = classify_recipe("digits")
    assert settings(replace(recipe, {name: value})) != settings(recipe)


def test_lengths_in_epochs_become_steps() -> None:
    optim = replace(
        pretrain_recipe("base"), {"optim.epochs": 6.0, "optim.warmup_epochs": 1.5}
    ).optim
    found = fit_settings(optim, EngineRecipe(), 20_480, torch.device("cpu"))
    assert (found.total_steps, found.warmup_steps) == (60, 15)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("optim.batch", 8), ("optim.accumulate", 2), ("engine.seed", 3)),
        *(("data.workers", 3), ("data.timeout", 7.0), ("tokens.views", 2)),
    ],
)
def test_every_word_about_input_reaches_the_loader(name: str, value: object) -> None:
    cpu, recipe = torch.device("cpu"), pretrain_recipe("digits")
    changed = loader_settings(replace(recipe, {name: value}), World(), cpu)
    assert changed != loader_settings(recipe, World(), cpu)


def test_a_recipe_can_ask_for_repeatable_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the run alone, and before anything is multiplied on a GPU."""
    recipe = replace(classify_recipe("digits"), {"engine.deterministic": True})
    settings = fit_settings(recipe.optim, recipe.engine, 100, torch.device("cpu"))
    assert settings.deterministic
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    promise_repeatable_products()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with _deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_loader_processes_decode_for_an_evaluation_on_a_gpu_alone() -> None:
    assert evaluation_workers(DataRecipe(workers=3), World(), torch.device("cuda")) == 3
    assert evaluation_workers(DataRecipe(workers=3), World(), torch.device("cpu")) == 0


@pytest.mark.parametrize(
    ("world", "workers"),
    [
        (World(), 16),
        (World(3, 8, local_rank=3, local_size=8), 7),
        (World(11, 16, local_rank=3, local_size=8), 7),  # two hosts
        (World(1, 16, local_rank=0, local_size=1), 16),  # sixteen hosts
    ],
)
def test_ranks_share_the_cores_of_their_own_host(
    world: World, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    recipe = tokenizer_recipe("small")
    assert recipe.data.workers is None
    assert loader_settings(recipe, world, torch.device("cuda")).workers == workers


def test_a_step_is_compiled_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(build, "_triton_works_on", lambda device: device == gpu)
    assert choose_compilation(None, gpu, 2000)
    assert not choose_compilation(None, gpu, 1999)
    assert not choose_compilation(None, torch.device("cuda:1"), 2000)
    assert not choose_compilation(None, cpu, 10**6)
    assert choose_compilation(True, cpu, 1) and not choose_compilation(False, gpu, 10**6)


@pytest.mark.parametrize(
    ("missing", "works"),
    [("", True), ("triton", False), ("gcc", False), ("Python.h", False), ("card", False)],
)
def test_what_triton_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, works: bool
) -> None:
    """Its own package, a C compiler, Python's headers, and a card that it knows."""
    capability = (6, 1) if missing == "card" else (7, 0)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: missing != "triton" or None)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "gcc" != missing else None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    if missing != "Python.h":
        (tmp_path / "Python.h").touch()
    assert build._triton_works_on(torch.device("cuda")) is works
    if missing == "gcc":
        monkeypatch.setenv("CC", "tcc")
        assert build._triton_works_on(torch.device("cuda"))


def test_repeatable_runs_are_compiled_only_when_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "_triton_works_on", lambda device: True)
    optim = OptimRecipe(batch=10, base_batch=10, epochs=800)

    def compiled(**engine: bool) -> bool:
        return fit_settings(optim, EngineRecipe(**engine), 50, torch.device("cuda")).compile

    monkeypatch.setattr(build, "choose_precision", lambda *given: "bfloat16")
    assert compiled() and not compiled(deterministic=True)
    assert compiled(deterministic=True, compile=True)


def test_evaluations_are_not_more_than_a_hundred_unless_asked_for() -> None:
    optim = OptimRecipe(batch=10, base_batch=10, epochs=800)
    settings = fit_settings(optim, EngineRecipe(), 50, torch.device("cpu"))  # 5 steps an epoch
    assert (settings.total_steps, settings.evaluate_every) == (4000, 40)
    settings = fit_settings(
        OptimRecipe(batch=10, base_batch=10, steps=4001), EngineRecipe(), 50, torch.device("cpu")
    )
    assert settings.evaluate_every == 41  # 98 of them, where every 40 steps would be 101
    settings = fit_settings(optim, EngineRecipe(evaluate_every=3), 50, torch.device("cpu"))
    assert settings.evaluate_every == 3
    settings = fit_settings(optim, EngineRecipe(), 400_000, torch.device("cpu"))
    assert settings.evaluate_every == 320_000  # 8 epochs


def test_what_stands_for_masked_patches_rests_in_fine_tuning() -> None:
    """Nothing is masked there: it would decay, and ranks would miss its gradient."""
    start = start_from(classify_recipe("digits").encoder, "none", 0)
    trained = {name for name, value in start.encoder.named_parameters() if value.requires_grad}
    everything = {name for name, _ in start.encoder.named_parameters()}
    assert everything - trained == {"embeddings.mask_embedding"}
