"""Stage 1, end to end: from pictures to a tokenizer."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from beit.batch import ImageBatch
from beit.commands.assembly.build import choose_device, tokenize_task, view_settings
from beit.commands.assembly.stage import (
    EVALUATION_BATCH,
    RunRequest,
    Stage,
    open_stage,
    take_average,
)
from beit.engine.distribution import process_group
from beit.engine.protocol import Evaluation
from beit.evaluation.codebook import CodebookReport, codebook_report, collapse_warning, hopeless
from beit.recipes.models import TokenizerRecipe
from beit.report.metrics import read_metrics
from beit.tasks.tokenize import TokenizeTask
from beit.tokenizer import storage
from beit.tokenizer.dvae import DiscreteVAE


def train_tokenizer(recipe: TokenizerRecipe, request: RunRequest) -> dict[str, Any]:
    """Stage 1: train a discrete VAE (paper, section 2.1) into `request.out`."""
    device = choose_device(request.device)
    with process_group(device.type) as world, open_stage(recipe, request, world, device) as stage:
        return fit_tokenizer(recipe, stage)


def fit_tokenizer(recipe: TokenizerRecipe, stage: Stage) -> dict[str, Any]:
    """Train it in a stage that is open, and keep it there."""
    task = tokenize_task(recipe)
    views = view_settings(recipe.views, token_view=task.model.image_size)
    result = stage.fit(task, stage.views(views), CodebookWatch(stage))
    if not stage.world.main:
        return {}
    take_average(task, result.average)
    model = task.model
    storage.save(model, stage.run.path)
    return stage.finish(result, {"vocabulary": model.vocabulary, "grid": model.grid})


class CodebookWatch:
    """Measures the codebook over the whole validation set; warns of collapse and gives up."""

    def __init__(self, stage: Stage) -> None:
        assert isinstance(stage.recipe, TokenizerRecipe)
        self.stage, self.recipe = stage, stage.recipe
        self.total = stage.recipe.optim.total_steps(len(stage.train))
        self.warmup = stage.recipe.relaxation.kl_warmup
        self.perplexities: list[float] | None = None

    def __call__(self, task: nn.Module, step: int) -> Evaluation:
        """One evaluation: metrics, and a reason to stop when the codebook is dead."""
        assert isinstance(task, TokenizeTask)
        report = self.measure(task.model)
        warning = collapse_warning(report)
        reason = None
        if self.perplexities is None:
            self.perplexities = self._before(step)
        if step > self.warmup * self.total:
            self.perplexities.append(report.perplexity)
            if hopeless(self.perplexities, step / self.total):
                reason = f"the codebook is dead and will not recover: {warning}"
        return Evaluation(report.metrics(), reason, warning)

    def _before(self, step: int) -> list[float]:
        """What was measured before a resumption, so that the run ends as if it never stopped."""
        file = self.stage.run.metrics
        rows = read_metrics(file) if file.is_file() else []
        return [
            float(row["perplexity"])
            for row in rows
            if row["split"] == "val" and self.warmup * self.total < row["step"] < step
        ]

    def measure(self, model: DiscreteVAE) -> CodebookReport:
        """The codebook over the validation set."""
        views = view_settings(self.recipe.views, token_view=model.image_size, random=False)
        batches = self.stage.validation_batches(views, None, EVALUATION_BATCH)
        return codebook_report(model, token_views(batches), self.stage.world.rank)


def token_views(batches: Iterator[ImageBatch]) -> Iterator[Tensor]:
    """The tokenizer's views of batches."""
    for batch in batches:
        assert batch.token_view is not None
        yield batch.token_view
