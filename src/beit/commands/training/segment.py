"""Fine-tuning for semantic segmentation, end to end: from pictures and masks to a segmenter."""

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.batch import ImageBatch
from beit.commands.assembly.build import (
    choose_device,
    dense_settings,
    fresh_weights,
    joint_view_settings,
    loader_settings,
)
from beit.commands.assembly.initial import Start, start_from
from beit.commands.assembly.run_files import EVALUATION
from beit.commands.assembly.saved_models import refuse_unsavable, save_segmenter
from beit.commands.assembly.stage import (
    BAD_VALIDATION_PICTURES,
    RunRequest,
    Stage,
    open_stage,
    take_average,
)
from beit.commands.training.best import BestWatch
from beit.data.loading.loader import pair_batches, whole_pairs
from beit.data.pairs.pair_files import look_again
from beit.data.pairs.pairs import PairSource, check_pairs, open_pairs
from beit.data.reading.bad_pictures import BadPictureLog, BadPictureTaker
from beit.data.sources.opening import Data
from beit.engine.distribution import World, process_group
from beit.engine.protocol import Batches
from beit.evaluation.dense_inference import DenseSettings, dense_classes
from beit.evaluation.segmentation import SegmentationScore
from beit.files import atomic_write_text, json_of_measured
from beit.nn.decoder_config import DecoderConfig, decoder_config
from beit.nn.own_decoder import OwnDecoder
from beit.nn.segmenter import Segmenter, build_segmenter
from beit.objectives.pixels import class_weights
from beit.recipes.downstream_models import SegmentRecipe
from beit.tasks.segment import SegmentTask

METRIC = "miou"


def segment(recipe: SegmentRecipe, request: RunRequest, init: str) -> dict[str, Any]:
    """Fine-tune a segmenter (paper, section 2.6) into `request.out`.

    Args:
        recipe: What to train.
        request: Where from (a folder in ADE20K's layout), where to, and how.
        init: What to start from: a run, a model folder, a weight file, or "none".
    """
    device = choose_device(request.device)
    # A model that is read has drawn its weights before. The group is around all that can be
    # refused: told once, then.
    with torch.random.fork_rng([]), process_group(device.type) as world:
        train, validation = paired_sources(recipe, request.data, rescan=request.resume)
        start = start_from(recipe.encoder, init, recipe.engine.seed)
        model = segmenter(recipe, start, train.classes)
        _try_out(model, training=world.size == 1)
        with open_stage(recipe, request, world, device, (train, validation)) as stage:
            if world.main:
                start.keep(stage.run.path)
                for sentence in (start.sentence, *_absent(train)):
                    print(f"segment: {sentence}", file=sys.stderr, flush=True)
            return _Segmentation(recipe, stage, train, validation).run(model)


def paired_sources(
    recipe: SegmentRecipe, data: Data, *, rescan: bool = False
) -> tuple[PairSource, PairSource]:
    """Pictures with masks to learn from and to measure on; unfit ones are refused."""
    if rescan and isinstance(data, str):
        look_again(data, "train")
    reduced = recipe.data.reduce_zero_label
    train = open_pairs(data, "train", reduce_zero_label=reduced)
    validation = open_pairs(data, "val", reduce_zero_label=reduced)
    check_pairs(train, validation, recipe.data.bad_share)
    return train, validation


def _absent(train: PairSource) -> list[str]:
    """A sentence about classes of which there is no pixel to learn from."""
    names = [name for name, count in zip(train.classes, train.pixels, strict=True) if not count]
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"no mask to train on holds {shown}: {len(names)} of the classes cannot be learned"]


def segmenter(recipe: SegmentRecipe, start: Start, labels: tuple[str, ...]) -> Segmenter:
    """Put a decoder on the encoder: the one it came with when that is the same, for these classes.

    The reference names 150 classes of ADE20K by number; so do we where nothing says more.
    """
    decoder = _decoder(recipe, start, len(labels))
    with fresh_weights(recipe.engine.seed):
        model = build_segmenter(start.encoder, decoder, labels)
    given = start.given
    if given is not None and given.decoder == model.config and given.labels == labels:
        assert given.head is not None
        own = {n: v for n, v in model.state_dict().items() if not n.startswith("encoder.")}
        assert set(own) == set(given.head.state_dict())
        model.load_state_dict(given.head.state_dict(), strict=False)
        start.head_kept = True
    return model


def _decoder(recipe: SegmentRecipe, start: Start, classes: int) -> DecoderConfig:
    asked = recipe.decoder
    names = ("channels", "layers", "auxiliary", "dropout", "norm")
    explicit = {n: getattr(asked, n) for n in names if getattr(asked, n) is not None}
    return decoder_config(asked.kind, start.encoder.config, classes, **explicit)


def _try_out(model: Segmenter, *, training: bool) -> None:
    """See that a decoder of one's own gives logits and can be saved while nothing is lost yet.

    It is tried as it trains, unless ranks would have to talk (their norms do) and have no devices.
    """
    if not isinstance(model.decoder, OwnDecoder):
        return
    config = model.encoder.config
    tried = copy.deepcopy(model.decoder).train(training)
    with torch.no_grad():
        tried([torch.zeros(2, config.width, *config.grid) for _ in model.config.layers])
    refuse_unsavable(Segmenter(model.encoder, model.config, tried, model.auxiliary, model.labels))


def measured(
    model: Segmenter,
    source: PairSource,
    settings: DenseSettings,
    world: World,
    device: torch.device,
    log: BadPictureTaker | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Mean IoU and its kin over every picture of a source, shared out over the ranks."""
    score = SegmentationScore(model.classes)
    for pair in whole_pairs(source, (world.rank, world.size), workers=workers, log=log):
        found = dense_classes(logits_of(model), pair.image, settings, device)
        score.update(found.cpu(), pair.mask)
    return score.compute()


def logits_of(model: Segmenter) -> Any:
    """The segmenter as dense inference wants it: normalised pictures to logits."""

    def logits(images: Tensor) -> Tensor:
        output: Tensor = model(images).logits
        return output

    return logits


class _Segmentation:
    """One run: its batches, its measurements, what it leaves."""

    def __init__(
        self, recipe: SegmentRecipe, stage: Stage, train: PairSource, validation: PairSource
    ) -> None:
        self.recipe, self.stage = recipe, stage
        self.train, self.validation = train, validation
        self.found: dict[str, Any] | None = None

    def run(self, model: Segmenter) -> dict[str, Any]:
        stage = self.stage
        balance = self.recipe.class_balance
        task = SegmentTask(
            model,
            auxiliary_weight=self.recipe.decoder.auxiliary_weight,
            layer_decay=self.recipe.layer_decay,
            class_weights=class_weights(self.train.pixels, balance) if balance else None,
        )
        watch = BestWatch(stage, METRIC, self.measure, self.save, self.recipe.patience)
        result = stage.fit(task, self.batches(), watch)
        take_average(task, result.average)
        if self.found is None:
            self.measure(task)
        if not stage.world.main:
            return {}
        atomic_write_text(stage.run.path / EVALUATION, json_of_measured(self.found) + "\n")
        self.save(stage.run.path, task, {"step": result.step})
        return stage.finish(result, {"best": watch.best()})

    def batches(self) -> Batches:
        stage, recipe = self.stage, self.recipe
        loader = loader_settings(recipe, stage.world, stage.device)
        log = BadPictureLog(stage.run.path, self.train, recipe.data.bad_share)
        views = joint_view_settings(recipe)

        def batches(samples_seen: int) -> Iterator[ImageBatch]:
            return pair_batches(self.train, views, loader, samples_seen, log=log)

        return batches

    @torch.inference_mode()
    def measure(self, task: nn.Module) -> dict[str, float]:
        assert isinstance(task, SegmentTask)
        stage, model = self.stage, task.model
        was_training = model.training
        model.eval()
        self.found = measured(
            model,
            self.validation,
            dense_settings(self.recipe),
            stage.world,
            stage.device,
            log=self._log,
            workers=stage.evaluation_workers,
        )
        model.train(was_training)
        self.found["labels"] = list(model.labels)
        return {n: v for n, v in self.found.items() if isinstance(v, float)}

    @property
    def _log(self) -> BadPictureLog:
        run = self.stage.run.path
        return BadPictureLog(run, self.validation, 1.0, name=BAD_VALIDATION_PICTURES)

    def save(self, folder: Path, task: nn.Module, facts: Mapping[str, object]) -> None:
        assert isinstance(task, SegmentTask)
        recipe = self.recipe
        palette = self.train.palette
        view = {"short_side": recipe.views.short_side, **recipe.inference.model_dump()}
        colours = None if palette is None else [list(colour) for colour in palette]
        described = {
            "recipe": recipe.name,
            "view": view,
            "palette": colours,
            "reduce_zero_label": recipe.data.reduce_zero_label,
        }
        save_segmenter(folder, task.model, {**described, **facts})


def settings_of(model: Segmenter, facts: Mapping[str, Any], **changes: Any) -> DenseSettings:
    """How a saved segmenter looks at whole pictures, with changes.

    A model that says nothing of it (a converted one) sees each picture squeezed to its own size.
    """
    size = model.encoder.config.image_size
    view = {"short_side": min(size), "mode": "whole", **facts.get("view", {})}
    if "scales" in view:
        view["scales"] = tuple(view["scales"])
    return replace(DenseSettings(size=size, **view), **changes)
