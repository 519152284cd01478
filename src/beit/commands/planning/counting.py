"""What a recipe costs, counted from its architecture and never by running it."""

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from beit.commands.assembly.build import (
    encoder_config_of,
    mask_plan,
    pretrain_task,
    tokenizer_config,
)
from beit.commands.planning.planned import Planned, fresh_classifier, fresh_segmenter
from beit.nn.classifier import Classifier
from beit.nn.counting import Work, count_parameters, count_work
from beit.nn.segmenter import Segmenter
from beit.recipes.downstream_models import ClassifyRecipe, Recipe, SegmentRecipe
from beit.recipes.models import PretrainRecipe
from beit.tokenizer.counting import TokenizerWork, count_tokenizer_work
from beit.tokenizer.dvae import DiscreteVAE

CLASSES, MASK_CLASSES = 1000, 150  # ImageNet's and ADE20K's, to count with


def counted(recipe: Recipe) -> dict[str, Any]:
    """Parameters, and GFLOP a picture (1 multiply-add = 2 FLOP).

    A classifier is counted with 1,000 classes, a segmenter with 150.
    """
    if isinstance(recipe, PretrainRecipe):
        return _counted_pretraining(recipe)
    if isinstance(recipe, ClassifyRecipe):
        return _counted_classifier(recipe)
    assert isinstance(recipe, SegmentRecipe)
    return _counted_segmenter(recipe)


class Flop(NamedTuple):
    """FLOP a picture."""

    forward: float
    training: float


def trained_work(recipe: Planned, classes: int) -> Flop:
    """Work of the model that is trained, without a tokenizer."""
    if not isinstance(recipe, SegmentRecipe):
        work = encoder_work(recipe, classes)
        return Flop(work.forward, work.training)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = fresh_segmenter(recipe, classes).eval()
        model(torch.empty(2, 3, *recipe.encoder.image_size))
    forward = counter.get_total_flops() / 2
    return Flop(forward, 3 * forward)


def encoder_work(recipe: PretrainRecipe | ClassifyRecipe, classes: int = CLASSES) -> Work:
    """Work of a model with one linear layer on top, by part."""
    config = encoder_config_of(recipe.encoder)
    if isinstance(recipe, ClassifyRecipe):
        return count_work(config, 1, classes)
    return count_work(config, mask_plan(recipe).capacity, outputs_of(recipe))


def outputs_of(recipe: PretrainRecipe) -> int:
    """Numbers that the head predicts at a place."""
    if recipe.objective.target == "pixels":
        return encoder_config_of(recipe.encoder).patch_values
    return tokenizer_config(recipe.tokenizer.model).vocabulary


def reading_work(recipe: PretrainRecipe) -> TokenizerWork:
    """Work of the frozen tokenizer on a view of the pre-training."""
    places = mask_plan(recipe).capacity if recipe.tokens.listed_only else None
    grid = encoder_config_of(recipe.encoder).grid
    return count_tokenizer_work(tokenizer_config(recipe.tokenizer.model), grid, places)


def _counted_pretraining(recipe: PretrainRecipe) -> dict[str, Any]:
    encoder, tokenizer = encoder_config_of(recipe.encoder), tokenizer_config(recipe.tokenizer.model)
    with torch.device("meta"):
        vae = DiscreteVAE(tokenizer)
        model = pretrain_task(recipe, vae).model
    work, live = encoder_work(recipe), reading_work(recipe).reading
    return {
        "parameters": count_parameters(model),
        "tokenizer_parameters": count_parameters(vae),
        "resolved_encoder": asdict(encoder),
        "resolved_tokenizer": tokenizer.to_dict(),
        "gflop_per_picture": {
            "forward": _giga(work.forward),
            "forward_and_backward": _giga(work.training),
            "tokenizer": _giga(live),
            "step": _giga(work.training + live),
        },
    }


def _counted_classifier(recipe: ClassifyRecipe) -> dict[str, Any]:
    with torch.device("meta"):
        model = fresh_classifier(recipe, CLASSES)
    return _counted_model(recipe, model, CLASSES)


def _counted_segmenter(recipe: SegmentRecipe) -> dict[str, Any]:
    with torch.device("meta"):
        model = fresh_segmenter(recipe, MASK_CLASSES)
    return _counted_model(recipe, model, MASK_CLASSES)


def _counted_model(
    recipe: ClassifyRecipe | SegmentRecipe, model: Classifier | Segmenter, classes: int
) -> dict[str, Any]:
    work = trained_work(recipe, classes)
    return {
        "parameters": count_parameters(model),
        "resolved_encoder": asdict(model.encoder.config),
        "gflop_per_picture": {
            "forward": _giga(work.forward),
            "forward_and_backward": _giga(work.training),
        },
    }


def _giga(flop: float) -> float:
    return round(flop / 1e9, 4)
