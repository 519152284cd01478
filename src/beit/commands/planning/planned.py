"""What `beit plan` knows of each kind of recipe: its task, its batches, its measurements."""

import torch
from torch import nn

from beit.commands.assembly.build import (
    dense_settings,
    encoder_config_of,
    mask_plan,
    pretrain_task,
    view_settings,
)
from beit.commands.assembly.initial import NOTHING, Start, start_from
from beit.commands.planning.calibration import Call, Shape, random_batch
from beit.commands.training.classify import classifier
from beit.commands.training.masked_prediction import masked_prediction
from beit.commands.training.segment import logits_of, segmenter
from beit.data.views.augment import prepare
from beit.data.views.views import ViewSettings
from beit.evaluation.dense_inference import dense_classes, window_starts
from beit.nn.classifier import Classifier
from beit.nn.segmenter import Segmenter
from beit.recipes.downstream_models import ClassifyRecipe, SegmentRecipe
from beit.recipes.models import PretrainRecipe
from beit.tasks.classify import ClassifyTask
from beit.tasks.mixing import MixSettings
from beit.tasks.pretrain import PretrainTask
from beit.tasks.segment import SegmentTask
from beit.tokenizer.dvae import DiscreteVAE

Planned = PretrainRecipe | ClassifyRecipe | SegmentRecipe
_PICTURE = (3, 4)  # height to width of the pictures that a segmenter is thought to be measured on


def has_tokens(recipe: Planned) -> bool:
    """Whether a tokenizer plays a part."""
    return isinstance(recipe, PretrainRecipe) and recipe.objective.target == "tokens"


def fresh_classifier(recipe: ClassifyRecipe, classes: int) -> Classifier:
    """The classifier that a run from scratch trains."""
    return classifier(recipe, _from_scratch(recipe), ("",) * classes)


def fresh_segmenter(recipe: SegmentRecipe, classes: int) -> Segmenter:
    """The segmenter that a run from scratch trains."""
    return segmenter(recipe, _from_scratch(recipe), ("",) * classes)


def _from_scratch(recipe: ClassifyRecipe | SegmentRecipe) -> Start:
    """Not the recipe's encoder as it stands: fine-tuning gives each block its own bias table."""
    return start_from(recipe.encoder, NOTHING, recipe.engine.seed)


def fresh_task(recipe: Planned, vae: DiscreteVAE | None, classes: int) -> nn.Module:
    """The task of a recipe, with freshly drawn weights."""
    if isinstance(recipe, PretrainRecipe):
        return pretrain_task(recipe, vae)
    if isinstance(recipe, SegmentRecipe):
        weight, decay = recipe.decoder.auxiliary_weight, recipe.layer_decay
        model = fresh_segmenter(recipe, classes)
        return SegmentTask(model, auxiliary_weight=weight, layer_decay=decay)
    mixing, decay = MixSettings(**recipe.mixing.model_dump()), recipe.tuning.layer_decay
    return ClassifyTask(fresh_classifier(recipe, classes), mixing=mixing, layer_decay=decay)


def views_of(recipe: Planned, token_view: tuple[int, int] | None = None) -> ViewSettings:
    """Views of the size that a recipe learns from, with the draws that the device applies."""
    size = recipe.encoder.image_size
    if isinstance(recipe, SegmentRecipe):
        return ViewSettings(size, jitter=recipe.views.jitter, flip=recipe.views.flip)
    return view_settings(recipe.views, patch_view=size, token_view=token_view)


def batch_shape(recipe: Planned, classes: int) -> Shape:
    """What a batch of a training step is to look like, its visual tokens given."""
    views = views_of(recipe)
    if isinstance(recipe, PretrainRecipe):
        return Shape(views, mask_plan(recipe), encoder_config_of(recipe.encoder).grid)
    if isinstance(recipe, SegmentRecipe):
        return Shape(views, pixel_classes=classes)
    return Shape(views, classes=classes)


def evaluation(
    recipe: Planned, task: nn.Module, vae: DiscreteVAE | None, pictures: int, device: torch.device
) -> Call:
    """What is done with so many validation pictures."""
    if isinstance(task, SegmentTask):
        assert isinstance(recipe, SegmentRecipe)
        return _segmented(recipe, task, pictures, device)
    if isinstance(task, ClassifyTask):
        batch = prepare(random_batch(Shape(views_of(recipe)), pictures, device))
        assert batch.patch_view is not None
        view, model = batch.patch_view, task.model
        return lambda: model(view)
    assert isinstance(recipe, PretrainRecipe) and isinstance(task, PretrainTask)
    tokenizer = vae if has_tokens(recipe) else None
    grid = encoder_config_of(recipe.encoder).grid
    size = None if tokenizer is None else tokenizer.config.view_size(grid)
    shape = Shape(views_of(recipe, size), mask_plan(recipe))
    batch, predictor = prepare(random_batch(shape, pictures, device)), task.model
    return lambda: masked_prediction(predictor, tokenizer, iter([batch]))


def _segmented(
    recipe: SegmentRecipe, task: SegmentTask, pictures: int, device: torch.device
) -> Call:
    settings, model = dense_settings(recipe), logits_of(task.model)
    size = usual_size(recipe)
    images = torch.randint(0, 256, (pictures, 3, *size), dtype=torch.uint8)
    return lambda: [dense_classes(model, image, settings, device).cpu() for image in images]


def usual_size(recipe: SegmentRecipe) -> tuple[int, int]:
    """Height and width of the pictures that a segmenter is thought to be measured on."""
    short, (height, width) = recipe.views.short_side, _PICTURE
    return short, short * width // height


def looks(recipe: SegmentRecipe) -> int:
    """How often a segmenter sees a piece of such a picture to tell its classes."""
    inference, count = recipe.inference, 0
    for scale in inference.scales:
        windows = 1
        if inference.mode == "slide":
            for side, window in zip(usual_size(recipe), recipe.encoder.image_size, strict=True):
                length = max(window, round(scale * side))
                windows *= len(window_starts(length, window, inference.stride_share))
        count += windows
    return count * (2 if inference.flip else 1)
