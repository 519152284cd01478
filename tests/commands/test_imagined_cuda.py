"""Every task's step on a GPU that is not there: nothing on the wrong device, no question to it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import nn

from beit.batch import ImageBatch
from beit.commands.assembly.build import (
    encoder_config_of,
    fit_settings,
    mask_plan,
    pretrain_task,
    tokenize_task,
    tokenizer_config,
    view_settings,
)
from beit.commands.planning.calibration import Shape, random_batch
from beit.commands.training.masked_prediction import masked_prediction
from beit.commands.training.segment import logits_of
from beit.data.views.augment import prepare
from beit.data.views.draws import Key, colour_draws
from beit.engine.distribution import World
from beit.engine.ema import WeightAverage
from beit.engine.optimiser import optimiser_of, trainable
from beit.engine.settings import FitSettings
from beit.engine.step import TrainingStep
from beit.evaluation.classification import ClassificationScore
from beit.evaluation.codebook import codebook_report
from beit.evaluation.dense_inference import DenseSettings, dense_classes
from beit.evaluation.neighbours import mean_pooled_features
from beit.nn.classifier import Classifier
from beit.nn.decoder_config import decoder_config
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead
from beit.nn.segmenter import build_segmenter
from beit.recipes.named import pretrain_recipe, tokenizer_recipe
from beit.recipes.named_downstream import classify_recipe, segment_recipe
from beit.recipes.overrides import replace as changed
from beit.tasks.classify import ClassifyTask
from beit.tasks.mixing import MixSettings
from beit.tasks.pretrain import PretrainTask
from beit.tasks.segment import SegmentTask
from beit.tokenizer.dvae import DiscreteVAE
from engine.imagined_cuda import CUDA, carry, imagined_cuda, without_backward

CPU = torch.device("cpu")
HALF = {"engine.precision": "bfloat16"}
PICTURES = 4
Case = tuple[nn.Module, list[nn.Module], ImageBatch, FitSettings]


def pretraining(*, banked: bool = False, **changes: Any) -> Case:
    names = {name.replace("__", "."): value for name, value in changes.items()}
    recipe = changed(pretrain_recipe("digits"), {**HALF, "encoder.drop_path": 0.1, **names})
    vae = DiscreteVAE(tokenizer_config(recipe.tokenizer.model)).requires_grad_(False).eval()
    task = pretrain_task(recipe, vae)
    grid = encoder_config_of(recipe.encoder).grid
    views = view_settings(
        recipe.views,
        patch_view=recipe.encoder.image_size,
        token_view=None if banked else vae.config.view_size(grid),
    )
    shape = Shape(views, mask_plan(recipe), grid if banked else None)
    settings = fit_settings(recipe.optim, recipe.engine, 1, CUDA)
    return task, [vae], random_batch(shape, PICTURES, CPU), settings


def tokenizing() -> Case:
    recipe = changed(tokenizer_recipe("digits"), HALF)
    task = tokenize_task(recipe)
    shape = Shape(view_settings(recipe.views, token_view=task.model.image_size))
    settings = fit_settings(recipe.optim, recipe.engine, 1, CUDA)
    return task, [], random_batch(shape, PICTURES, CPU), settings


def classifying(**mixing: float) -> Case:
    recipe = changed(classify_recipe("digits"), {**HALF, "encoder.drop_path": 0.1})
    config = encoder_config_of(recipe.encoder)
    model = Classifier(Encoder(config), ClassifierHead(config.width, 5, "mean"))
    task = ClassifyTask(model, mixing=MixSettings(**mixing), layer_decay=0.75)
    views = view_settings(recipe.views, patch_view=recipe.encoder.image_size)
    batch = random_batch(Shape(views, classes=5), PICTURES, CPU)
    return task, [], batch, fit_settings(recipe.optim, recipe.engine, 1, CUDA)


def segmenting(kind: Any, norm: Any) -> Case:
    recipe = changed(segment_recipe("digits"), {**HALF, "encoder.drop_path": 0.1})
    config = encoder_config_of(recipe.encoder)
    decoder = decoder_config(kind, config, 3, channels=16, auxiliary=True, dropout=0.1, norm=norm)
    model = build_segmenter(Encoder(config), decoder)
    task = SegmentTask(model, layer_decay=0.9, class_weights=torch.ones(3))
    views = view_settings(classify_recipe("digits").views, patch_view=config.image_size)
    batch = random_batch(Shape(views), PICTURES, CPU)
    keys = [Key(0, 0, index) for index in range(PICTURES)]
    target = torch.zeros(PICTURES, *config.image_size, dtype=torch.uint8)
    batch = replace(batch, target=target, colour=colour_draws(keys, 0.4, flip=True))
    return task, [], batch, fit_settings(recipe.optim, recipe.engine, 1, CUDA)


CASES: dict[str, Callable[[], Case]] = {
    "pre-training, exact tokens": pretraining,
    "pre-training, tokens in half precision at listed places": lambda: pretraining(
        tokens__precision="bfloat16", tokens__listed_only=True
    ),
    "pre-training, tokens of a bank": lambda: pretraining(banked=True),
    "pre-training, every place": lambda: pretraining(objective__places="all"),
    "pre-training, pixels": lambda: pretraining(objective__target="pixels"),
    "tokenizer": tokenizing,
    "classification": classifying,
    "classification, mixed": lambda: classifying(mixup=0.8, cutmix=1.0, label_smoothing=0.1),
    "segmentation, UPerNet": lambda: segmenting("upernet", "batch"),
    "segmentation, PUP": lambda: segmenting("pup", "group"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_never_asks_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, others, batch, settings = CASES[name]()
    settings = replace(settings, global_batch=2 * PICTURES, accumulate=2, compile=False)
    with imagined_cuda(monkeypatch) as watch:
        carry(task, *others)
        without_backward(monkeypatch, task.train())
        average = WeightAverage(trainable(task), 0.99)
        optimiser = optimiser_of(task, settings)
        step = TrainingStep(task, optimiser, average, settings, World(), CUDA, prepare=prepare)
        assert step.deferred
        step(0, repeat(batch))
        watch.waited.clear()  # constants are copied once
        values = step(1, repeat(batch)).values
        assert values.device == CUDA and values.dtype == torch.float32
    assert not watch.waited


class HostGenerator(torch.Generator):
    """Draws on the host whatever device it is made for."""

    def __new__(cls, *_: object) -> "HostGenerator":
        return super().__new__(cls)


def on_the_device(batch: ImageBatch) -> ImageBatch:
    return prepare(batch.to(CUDA))


def test_evaluations_mix_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may ask the device for what they found; every question is answered with 1 or False."""
    classifier, _, labelled, _ = classifying()
    pretrained, (vae,), masked, _ = pretraining()
    segmenter, _, _, _ = segmenting("upernet", "batch")
    assert isinstance(classifier, ClassifyTask) and isinstance(pretrained, PretrainTask)
    assert isinstance(segmenter, SegmentTask) and isinstance(vae, DiscreteVAE)
    monkeypatch.setattr(torch, "Generator", HostGenerator)
    with imagined_cuda(monkeypatch) as watch, torch.no_grad():
        watch.may_ask = True
        picture = torch.zeros(3, 40, 56, dtype=torch.uint8)
        carry(*(module.eval() for module in (classifier, pretrained, segmenter, vae)))
        batch = on_the_device(labelled)
        assert batch.patch_view is not None and batch.label is not None
        score = ClassificationScore(5)
        score.update(classifier.model(batch.patch_view), batch.label)
        assert not watch.answers
        score.compute()
        masked_prediction(pretrained.model, vae, iter([on_the_device(masked)]))
        view = on_the_device(masked).token_view
        assert view is not None
        codebook_report(vae, iter([view]))
        encoder = classifier.model.encoder
        found = mean_pooled_features(encoder, [prepare(labelled)], CUDA, [0, -1])
        assert found[-1].features.device == CPU
        for settings in (
            DenseSettings((32, 32), 32, scales=(1.0, 1.25), flip=True),
            DenseSettings((32, 32), 32, mode="whole"),
        ):
            classes = dense_classes(logits_of(segmenter.model), picture, settings, CUDA)
            assert classes.device == CUDA and classes.shape == picture.shape[1:]
