"""What both stages of training share: the data, the run folder, the ranks, the fit, the result."""

import argparse
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from beit.batch import ImageBatch
from beit.data.augment import prepare
from beit.data.bad_pictures import BadPictureLog
from beit.data.draws import MaskPlan
from beit.data.loader import evaluation_batches, training_batches
from beit.data.sources import Source, open_source
from beit.data.views import ViewSettings
from beit.engine.distribution import World
from beit.engine.files import atomic_write_text, sha256_of
from beit.engine.fit import fit
from beit.engine.protocol import Evaluate
from beit.engine.run_folder import RunFolder
from beit.engine.settings import FitResult
from beit.errors import UserError
from beit.recipes.build import fit_settings, loader_settings
from beit.recipes.models import Frozen, PretrainRecipe, TokenizerRecipe
from beit.recipes.overrides import dotted_names

# Fields that change how fast or how often, but nothing that is trained.
FREE_TO_CHANGE = frozenset(
    {"data.workers", "data.timeout", "engine.log_every", "engine.save_every", "engine.keep"}
)


@dataclass(frozen=True)
class RunRequest:
    """What is asked of a run beside its recipe."""

    data: str
    out: Path
    resume: bool = False
    accept_changed_data: bool = False
    device: str | None = None

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> "RunRequest":
        """Read it from the command line."""
        device = options.device
        if device is None:
            device = "cuda" if options.gpus else "cpu" if options.processes else None
        return cls(
            options.data, Path(options.out), options.resume, options.accept_changed_data, device
        )


@dataclass(frozen=True)
class Stage:
    """An open stage: everything `fit` needs but the task."""

    recipe: TokenizerRecipe | PretrainRecipe
    request: RunRequest
    world: World
    device: torch.device
    run: RunFolder
    train: Source
    validation: Source

    def fit(
        self,
        task: nn.Module,
        views: ViewSettings,
        masks: MaskPlan | None,
        evaluate: Evaluate | None,
    ) -> FitResult:
        """Train the task on random views of the training pictures."""
        recipe = self.recipe
        loader = loader_settings(recipe, self.world, self.device)
        log = BadPictureLog(self.run.path, self.train, recipe.data.bad_share)

        def batches(samples_seen: int) -> Iterator[ImageBatch]:
            return training_batches(self.train, views, masks, loader, samples_seen, log=log)

        return fit(
            task.to(self.device),
            batches,
            fit_settings(recipe.optim, recipe.engine, len(self.train), self.device),
            run=self.run,
            prepare=prepare,
            evaluate=evaluate if len(self.validation) else None,
            resume=self.request.resume,
            fingerprints={"recipe": recipe_fingerprint(recipe), "data": self.train.fingerprint},
        )

    def validation_batches(
        self, views: ViewSettings, masks: MaskPlan | None, batch_size: int
    ) -> Iterator[ImageBatch]:
        """Centre crops of the validation pictures on the device, each once."""
        return prepared_batches(self.validation, views, masks, batch_size, self.device)

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
        atomic_write_text(self.run.path / "result.json", json.dumps(summary, indent=2) + "\n")
        return summary


def prepared_batches(
    source: Source,
    views: ViewSettings,
    masks: MaskPlan | None,
    batch_size: int,
    device: torch.device,
) -> Iterator[ImageBatch]:
    """An evaluation pass with the device work done."""
    for batch in evaluation_batches(source, views, masks, batch_size, workers=0):
        yield prepare(batch.to(device))


@contextmanager
def open_stage(
    recipe: TokenizerRecipe | PretrainRecipe,
    request: RunRequest,
    world: World,
    device: torch.device,
) -> Iterator[Stage]:
    """Open the data and the run folder; a run that cannot go on is refused before any work."""
    train, validation = open_source(request.data, "train"), open_source(request.data, "val")
    with RunFolder.open(request.out, resume=request.resume, main=world.main) as run:
        if world.main:
            _record(recipe, request, run)
        yield Stage(recipe, request, world, device, run, train, validation)


def recipe_fingerprint(recipe: Frozen) -> str:
    """A hash of every field that decides what is trained."""
    fields = {n: v for n, v, _ in dotted_names(recipe) if n not in FREE_TO_CHANGE}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _record(recipe: Frozen, request: RunRequest, run: RunFolder) -> None:
    """Write recipe.yaml and source.json, or see that a resumed run has the same recipe."""
    if run.recipe.is_file():
        _refuse_other_recipe(recipe, run.recipe)
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    atomic_write_text(run.recipe, text)
    atomic_write_text(run.path / "source.json", json.dumps({"data": request.data}) + "\n")


def _refuse_other_recipe(recipe: Frozen, file: Path) -> None:
    before = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, value, _ in dotted_names(recipe):
        node = before
        for part in name.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if node != json.loads(json.dumps(value)) and name.removeprefix("tokenizer.") not in (
            FREE_TO_CHANGE
        ):
            raise UserError(
                f"the run in {file.parent} was made with --{name} {node}, not {value}; "
                "resume with the same recipe or choose another --out"
            )
