"""What both stages of training share: the data, the run folder, the ranks, the fit, the result."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from beit.batch import ImageBatch
from beit.commands.assembly.build import evaluation_workers, fit_settings, loader_settings
from beit.commands.assembly.checks import (
    refuse_impossible,
    refuse_other_data,
    refuse_other_recipe,
    refuse_unmeasurable,
)
from beit.commands.assembly.leftovers import BEST, clear_leftovers
from beit.commands.assembly.run_files import HANDED_OVER
from beit.data.checking.remarks import remarks
from beit.data.loading.loader import evaluation_batches, training_batches
from beit.data.loading.samples import Codes
from beit.data.reading.bad_pictures import FILE_NAME as BAD_PICTURES
from beit.data.reading.bad_pictures import BadPictureLog, BadPictureTaker
from beit.data.sources.file_table import keep_files
from beit.data.sources.opening import Data, Source, open_parts
from beit.data.views.augment import prepare
from beit.data.views.draws import MaskPlan
from beit.data.views.views import ViewSettings
from beit.engine.distribution import World
from beit.engine.fit import fit
from beit.engine.protocol import NO_HOOKS, Batches, Evaluate, Hooks
from beit.engine.run_folder import RunFolder
from beit.engine.settings import FitResult, promise_repeatable_products
from beit.errors import UserError
from beit.files import atomic_write_text, json_of_measured, sha256_of
from beit.nn.fused_attention import look_at
from beit.recipes.downstream_models import ClassifyRecipe, Recipe, SegmentRecipe
from beit.recipes.models import Frozen
from beit.recipes.overrides import (
    deciding_fields,
    without_later_fields,
)

BAD_VALIDATION_PICTURES = "bad_validation_pictures.jsonl"
EVALUATION_BATCH = 100  # pictures at once


@dataclass(frozen=True)
class RunRequest:
    """What is asked of a run beside its recipe."""

    data: Data
    out: Path
    resume: bool = False
    accept_changed_data: bool = False
    device: str | None = None
    hooks: Hooks = NO_HOOKS


@dataclass(frozen=True)
class Stage:
    """An open stage: everything `fit` needs but the task."""

    recipe: Recipe
    request: RunRequest
    world: World
    device: torch.device
    run: RunFolder
    train: Source
    validation: Source
    record: Callable[[], None]  # writes down what the run is of and from; for when it goes on

    def views(
        self, views: ViewSettings, masks: MaskPlan | None = None, codes: Codes | None = None
    ) -> Batches:
        """Random views of the training pictures, as `fit` asks for them."""
        loader = loader_settings(self.recipe, self.world, self.device)
        log = BadPictureLog(self.run.path, self.train, self.recipe.data.bad_share)

        def batches(samples_seen: int) -> Iterator[ImageBatch]:
            return training_batches(
                self.train, views, masks, loader, samples_seen, codes=codes, log=log
            )

        return batches

    def fit(self, task: nn.Module, batches: Batches, evaluate: Evaluate | None) -> FitResult:
        """Train the task on the batches."""
        recipe = self.recipe
        settings = fit_settings(recipe.optim, recipe.engine, len(self.train), self.device)
        if settings.compile:
            look_at(self.device)

        def recorded(samples_seen: int) -> Iterator[ImageBatch]:
            self.record()  # it asks for batches: nothing refuses the run any more
            self.world.barrier()  # another rank may note a bad picture of the new ones
            return batches(samples_seen)

        result = fit(
            task.to(self.device),
            recorded,
            # Whether other data is accepted was decided by source.json, when the run was opened.
            replace(
                settings,
                accept_changed=frozenset({"data"}),
                models=self._models,
            ),
            run=self.run,
            prepare=prepare,
            evaluate=evaluate if len(self.validation) else None,
            resume=self.request.resume,
            fingerprints={"recipe": recipe_fingerprint(recipe), "data": self.train.fingerprint},
            hooks=self.request.hooks,
        )
        self.record()  # a run that was at its end has asked for none
        return result

    @property
    def _models(self) -> tuple[str, ...]:
        """The weights that the run writes beside its checkpoints."""
        final = "model.safetensors"
        chosen = isinstance(self.recipe, (ClassifyRecipe, SegmentRecipe)) and len(self.validation)
        return (f"{BEST}/{final}", final) if chosen else (final,)

    def validation_batches(
        self, views: ViewSettings, masks: MaskPlan | None, batch_size: int
    ) -> Iterator[ImageBatch]:
        """Centre crops of this rank's share of the validation pictures on the device, each once."""
        none, world = True, self.world
        batches = prepared_batches(
            self.validation,
            views,
            masks,
            batch_size=batch_size,
            device=self.device,
            log=self._bad_validation_pictures,
            share=(world.rank, world.size),
            workers=self.evaluation_workers,
        )
        for batch in batches:
            none = False
            yield batch
        if none and world.size == 1:
            raise UserError(
                f"not one of the {len(self.validation)} validation pictures can be read; "
                f"{self.run.path / BAD_VALIDATION_PICTURES} names them"
            )

    @property
    def evaluation_workers(self) -> int:
        """Loader processes of an evaluation on this rank."""
        return evaluation_workers(self.recipe.data, self.world, self.device)

    @cached_property
    def _bad_validation_pictures(self) -> BadPictureLog:
        """Names the unreadable ones, which are left out; they never stop a run."""
        name = BAD_VALIDATION_PICTURES
        return BadPictureLog(self.run.path, self.validation, 1.0, name=name)

    def finish(self, result: FitResult, more: dict[str, Any]) -> dict[str, Any]:
        """Write result.json, which is what `--json` prints."""
        summary = {
            "run": str(self.request.out),
            "recipe": self.recipe.name,
            "steps": result.step,
            "samples_seen": result.samples_seen,
            "stopped_early": result.stop_reason,
            "train": result.metrics,
            "validation": result.validation,
            "model_sha256": sha256_of(self.run.model),
            **more,
        }
        atomic_write_text(self.run.path / "result.json", json_of_measured(summary, indent=2) + "\n")
        return summary


def prepared_batches(
    source: Source,
    views: ViewSettings,
    masks: MaskPlan | None = None,
    *,
    batch_size: int,
    device: torch.device,
    log: BadPictureTaker | None = None,
    share: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Iterator[ImageBatch]:
    """An evaluation pass with the device work done."""
    batches = evaluation_batches(source, views, masks, batch_size, workers, share=share, log=log)
    for batch in batches:
        yield prepare(batch.to(device))


@contextmanager
def open_stage(
    recipe: Recipe,
    request: RunRequest,
    world: World,
    device: torch.device,
    sources: tuple[Source, Source] | None = None,
) -> Iterator[Stage]:
    """Open the data and the run folder; a run that cannot go on is refused before any work.

    Args:
        recipe: What to train.
        request: Where from, where to, and how.
        world: The ranks.
        device: Where to train.
        sources: The pictures to train and to measure on, when another stage has them open.

    Raises:
        UserError: The run cannot go on there.
    """
    if recipe.engine.deterministic:
        promise_repeatable_products()
    train, validation = sources or open_parts(request.data, rescan=request.resume)
    refuse_impossible(recipe, world.size, len(train), device)
    refuse_unmeasurable(validation)
    with _enter(request, main=world.main) as run:
        record = _recorder(recipe, request, run, train) if world.main else lambda: None
        if world.main:
            for sentence in remarks(train) if sources is None else []:
                print(f"data: {sentence}", file=sys.stderr, flush=True)
        yield Stage(recipe, request, world, device, run, train, validation, record)


def recipe_fingerprint(recipe: Frozen) -> str:
    """A hash of every field that decides what is trained.

    Fields that recipes did not always have count when they are set, so that old runs go on.
    """
    fields = json.dumps(without_later_fields(deciding_fields(recipe)), sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:16]


def _enter(request: RunRequest, *, main: bool) -> RunFolder:
    out = request.out
    if main and request.resume and _holds_something_else(out):
        raise UserError(
            f"{out} holds no run to go on with (it has no recipe.yaml); give the folder of a run, "
            "or begin a new one in an empty folder"
        )
    return RunFolder.open(out, resume=request.resume, main=main)


def _holds_something_else(folder: Path) -> bool:
    """Whether a folder has content, and not that of a run, however early it was killed."""
    if not folder.is_dir() or (folder / "recipe.yaml").is_file():
        return False
    ours = (".lock", "recipe.yaml.tmp-")
    return any(not path.name.startswith(ours) for path in folder.iterdir())


def _recorder(
    recipe: Recipe, request: RunRequest, run: RunFolder, train: Source
) -> Callable[[], None]:
    """See that a resumed run is of the same recipe and pictures; return what writes both down.

    A new run's are written at once. Those of a run that is there wait: it may yet be refused, and
    what was accepted for it would then be forgotten as a change.
    """
    file = run.path / "source.json"
    clear_leftovers(run.path)
    if run.recipe.is_file():
        refuse_other_recipe(recipe, run.recipe)
    others = False
    if known := file.is_file():
        others = refuse_other_data(train, file, accepted=request.accept_changed_data)

    @cache  # once: the second time, the list of bad pictures is that of the new ones
    def record() -> None:
        bad = run.path / BAD_PICTURES
        if others and bad.is_file():  # it counts the old ones
            bad.replace(bad.with_name(f"{BAD_PICTURES}.before"))
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        atomic_write_text(run.recipe, text)
        keep_files(run.path, train)
        source = {"pictures": len(train), "fingerprint": train.fingerprint}
        atomic_write_text(file, json.dumps(_place(request.data) | source) + "\n")

    if not known:
        record()
    return record


def _place(data: Data) -> dict[str, Any]:
    """Where pictures are to be found again, if that can be told."""
    if not isinstance(data, str):
        return {"data": str(data), HANDED_OVER: True}
    return {"data": os.path.abspath(data) if os.path.lexists(data) else data}


def take_average(task: nn.Module, average: dict[str, Tensor] | None) -> None:
    """Put the averaged weights into the task, if the run kept an average."""
    if average is None:
        return
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if name in average:
                parameter.copy_(average[name])
