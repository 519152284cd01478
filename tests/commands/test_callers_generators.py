"""Chance is the caller's own: what is drawn in a notebook does not depend on what was run there."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from beit.commands.assembly.build import encoder_config_of, masked_image_model, tokenize_task
from beit.commands.planning.counting import counted
from beit.commands.planning.planned import fresh_classifier, fresh_segmenter
from beit.commands.planning.planning import PlanRequest, plan
from beit.nn.encoder import Encoder
from beit.nn.heads import MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.recipes.downstream_models import Recipe
from beit.recipes.named import pretrain_recipe, tokenizer_recipe
from beit.recipes.named_downstream import classify_recipe, segment_recipe
from beit.recipes.overrides import replace
from commands.fine_tuning_runs import CLASSIFY, SEGMENT, classifying, coloured, halves, segmenting
from commands.recipe_runs import PRETRAIN, TOKENIZER, beit, pretraining, tokenizing

PRETRAINING = replace(pretrain_recipe("digits"), PRETRAIN)
TOKENIZING = replace(tokenizer_recipe("digits"), TOKENIZER)
CLASSIFYING = replace(classify_recipe("digits"), CLASSIFY)
SEGMENTING = replace(segment_recipe("digits"), SEGMENT)


@contextmanager
def kept() -> Iterator[None]:
    """See that the global generators are afterwards where they were."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    before = states()
    yield
    assert states() == before


def states() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def run(*words: object) -> None:
    outcome = beit(*words)
    assert outcome.status == 0, outcome.err


def test_a_pretraining_and_its_report_keep_it(tmp_path: Path) -> None:
    data = coloured(tmp_path / "data")  # classes: the report compares with an untrained model
    with kept():
        run(*pretraining(tmp_path / "run", data, optim__batch=12))
    with kept():
        run("report", tmp_path / "run")
    with kept():
        run(*pretraining(tmp_path / "more", data, optim__batch=12), "--init", tmp_path / "run")


def test_a_tokenizer_s_training_keeps_it(tmp_path: Path) -> None:
    with kept():
        run(*tokenizing(tmp_path / "run"))


def test_a_classification_and_its_report_keep_it(tmp_path: Path) -> None:
    data = coloured(tmp_path / "data")
    with kept():
        run(*classifying(tmp_path / "run", data))
    with kept():
        run("report", tmp_path / "run")
    with kept():
        run(*classifying(tmp_path / "more", data, init=tmp_path / "run"))


def test_a_segmentation_and_its_report_keep_it(tmp_path: Path) -> None:
    data = halves(tmp_path / "data")
    with kept():
        run(*segmenting(tmp_path / "run", data))
    with kept():
        run("report", tmp_path / "run")


@pytest.mark.parametrize("recipe", [PRETRAINING, CLASSIFYING, SEGMENTING])
def test_a_plan_keeps_it(recipe: Recipe) -> None:
    with kept():
        plan(recipe, PlanRequest(images=100, seconds=0.01, device="cpu"))
    with kept():
        counted(recipe)


def _pretrained() -> nn.Module:
    return masked_image_model(PRETRAINING, vocabulary=8)


@pytest.mark.parametrize(
    "draw",
    [
        _pretrained,
        lambda: tokenize_task(TOKENIZING),
        lambda: fresh_classifier(CLASSIFYING, 3),
        lambda: fresh_segmenter(SEGMENTING, 3),
    ],
)
def test_fresh_weights_follow_from_the_run_s_seed_alone(
    draw: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.default_generator.manual_seed(1)
    one = draw().state_dict()
    torch.default_generator.manual_seed(2)
    other = draw().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert not seeded  # the generators of GPUs are the caller's, too


def test_weights_of_a_seed_are_those_they_always_were() -> None:
    torch.manual_seed(PRETRAINING.engine.seed + 0x5EED)
    encoder = Encoder(encoder_config_of(PRETRAINING.encoder))
    before = MaskedImageModel(encoder, MaskedTokenHead(16, 8)).state_dict()
    now = _pretrained().state_dict()
    assert all(torch.equal(now[name], before[name]) for name in before)


@pytest.mark.gpu
def test_a_plan_on_a_gpu_keeps_its_generator() -> None:
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    plan(CLASSIFYING, PlanRequest(images=100, seconds=0.01, device="cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), before)
