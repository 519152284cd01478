"""Fine-tuning for classification, end to end: from labelled pictures to a classifier."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit.commands.assembly.build import choose_device, fresh_weights, view_settings
from beit.commands.assembly.initial import Start, start_from
from beit.commands.assembly.run_files import EVALUATION
from beit.commands.assembly.saved_models import save_classifier
from beit.commands.assembly.stage import (
    EVALUATION_BATCH,
    RunRequest,
    Stage,
    open_stage,
    take_average,
)
from beit.commands.training.best import BestWatch
from beit.data.checking.labels import check_classes, choose_labels
from beit.data.checking.remarks import remarks, unmeasured_classes
from beit.data.sources.opening import Data, Source, open_parts
from beit.engine.distribution import process_group
from beit.errors import UserError
from beit.evaluation.classification import ClassificationReport, ClassificationScore
from beit.files import atomic_write_text, json_of_measured
from beit.nn.classifier import Classifier
from beit.nn.heads import ClassifierHead
from beit.recipes.downstream_models import ClassifyRecipe
from beit.tasks.classify import ClassifyTask
from beit.tasks.mixing import MixSettings

METRIC = "top1"


def classify(recipe: ClassifyRecipe, request: RunRequest, init: str) -> dict[str, Any]:
    """Fine-tune a classifier (paper, section 2.6) into `request.out`.

    Args:
        recipe: What to train.
        request: Where from, where to, and how.
        init: What to start from: a run, a model folder, a weight file, or "none".
    """
    device = choose_device(request.device)
    # A model that is read has drawn its weights before. The group is around all that can be
    # refused: told once, then.
    with torch.random.fork_rng([]), process_group(device.type) as world:
        sources = labelled_sources(recipe, request.data, rescan=request.resume)
        start = start_from(recipe.encoder, init, recipe.engine.seed)
        model = classifier(recipe, start, sources[0].classes)
        with open_stage(recipe, request, world, device, sources) as stage:
            if world.main:
                start.keep(stage.run.path)
                for sentence in (start.sentence, *remarks(sources[1]), *_unmeasured(*sources)):
                    print(f"classify: {sentence}", file=sys.stderr, flush=True)
            return _classify(recipe, stage, model)


def labelled_sources(
    recipe: ClassifyRecipe, data: Data, *, rescan: bool = False
) -> tuple[Source, Source]:
    """The labels that are learned from, and the pictures to measure on; unfit ones are refused."""
    train, validation = open_parts(data, rescan=rescan)
    check_classes(train, validation)
    if recipe.patience is not None and not len(validation):
        raise UserError(
            f"--patience has nothing to go by: {validation.name} has no pictures to validate on; "
            "give it a val folder, or leave --patience out"
        )
    chosen = choose_labels(train, str(recipe.data.labels), recipe.engine.seed)
    return chosen, validation


def _unmeasured(train: Source, validation: Source) -> list[str]:
    """A sentence about a run of which little or nothing will be known."""
    if len(validation):
        return unmeasured_classes(train, validation)
    return ["no pictures to validate on: nothing is measured, and no best model is kept"]


def classifier(recipe: ClassifyRecipe, start: Start, labels: tuple[str, ...]) -> Classifier:
    """Put a head on the encoder: the one it came with when that is for the same classes."""
    tuning = recipe.tuning
    width = start.encoder.config.width
    with fresh_weights(recipe.engine.seed):
        head = ClassifierHead(width, len(labels), tuning.pool, tuning.initial_factor)
    given = start.given
    same = (
        given is not None
        and isinstance(given.head, ClassifierHead)
        and given.labels == labels
        and given.head.pool == tuning.pool
    )
    if same:
        assert given is not None and given.head is not None
        head.load_state_dict(given.head.state_dict())
        start.head_kept = True
    return Classifier(start.encoder, head, labels)


def _classify(recipe: ClassifyRecipe, stage: Stage, model: Classifier) -> dict[str, Any]:
    mixing = MixSettings(**recipe.mixing.model_dump())
    task = ClassifyTask(model, mixing=mixing, layer_decay=recipe.tuning.layer_decay)
    views = view_settings(recipe.views, patch_view=recipe.encoder.image_size)
    measurement = _Measurement(recipe, stage)
    watch = BestWatch(stage, METRIC, measurement, measurement.save, recipe.patience)
    result = stage.fit(task, stage.views(views), watch)
    take_average(task, result.average)
    if len(stage.validation):
        report = measurement.report or measurement.of(model)
        if stage.world.main:
            text = json_of_measured(report.whole(model.labels)) + "\n"
            atomic_write_text(stage.run.path / EVALUATION, text)
    if not stage.world.main:
        return {}
    measurement.save(stage.run.path, task, {"step": result.step})
    return stage.finish(result, {"best": watch.best()})


class _Measurement:
    """Accuracy over the whole validation set, shared out over the ranks."""

    def __init__(self, recipe: ClassifyRecipe, stage: Stage) -> None:
        self.recipe, self.stage = recipe, stage
        self.report: ClassificationReport | None = None

    def __call__(self, task: nn.Module) -> dict[str, float]:
        assert isinstance(task, ClassifyTask)
        self.report = self.of(task.model)
        return self.report.metrics()

    @torch.inference_mode()
    def of(self, model: Classifier) -> ClassificationReport:
        size = self.recipe.encoder.image_size
        views = view_settings(self.recipe.views, patch_view=size, random=False)
        score = ClassificationScore(model.classes)
        was_training = model.training
        model.eval()
        for batch in self.stage.validation_batches(views, None, EVALUATION_BATCH):
            assert batch.patch_view is not None and batch.label is not None
            score.update(model(batch.patch_view), batch.label)
        model.train(was_training)
        return score.compute()

    def save(self, folder: Path, task: nn.Module, facts: Mapping[str, object]) -> None:
        assert isinstance(task, ClassifyTask)
        recipe = self.recipe
        view = {"centre_share": recipe.views.centre_share}
        save_classifier(folder, task.model, {"recipe": recipe.name, "view": view, **facts})
