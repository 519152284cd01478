"""The two stages, end to end: from pictures to a tokenizer, from both to a pre-trained model."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.batch import ImageBatch
from beit.data.draws import MaskPlan
from beit.data.sources import open_parts
from beit.data.views import ViewSettings
from beit.engine.distribution import process_group
from beit.engine.protocol import NO_HOOKS, Evaluation
from beit.errors import UserError
from beit.evaluation.codebook import CodebookReport, codebook_report, collapse_warning, hopeless
from beit.evaluation.masked_pixels import evaluate_masked_pixels
from beit.evaluation.masked_prediction import evaluate_masked_prediction
from beit.nn.masked_image_model import MaskedImageModel
from beit.recipes.banking import compare_codes, recipe_with_bank, refuse_other_bank
from beit.recipes.build import (
    choose_device,
    encoder_config_of,
    mask_plan,
    pretrain_task,
    tokenize_task,
    view_settings,
)
from beit.recipes.continued import put_into, refuse_other_head, tokenizer_beside
from beit.recipes.initial import NOTHING, Start, go_on_from, require_same_start
from beit.recipes.models import PretrainRecipe, TokenizerRecipe
from beit.recipes.own_tokenizer import (
    OwnTokenizer,
    RunTokenizer,
    fingerprint_of,
    refuse_other_own,
    view_size,
)
from beit.recipes.saved_models import save_masked_image_model
from beit.recipes.stage import RunRequest, Stage, open_stage
from beit.recipes.token_precision import with_token_precision
from beit.recipes.tokenizers import load_tokenizer
from beit.report.metrics import read_metrics
from beit.tasks.pretrain import Pixels, PretrainTask, VisualTokens
from beit.tasks.tokenize import TokenizeTask
from beit.tokenizer import storage
from beit.tokenizer.bank import TOKENIZER, TokenBank
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.protocol import Tokenizer
from beit.tokenizer.reading import TokenReader

EVALUATION_BATCH = 100


def train_tokenizer(recipe: TokenizerRecipe, request: RunRequest) -> dict[str, Any]:
    """Stage 1: train a discrete VAE (paper, section 2.1) into `request.out`."""
    device = choose_device(request.device)
    with process_group(device.type) as world, open_stage(recipe, request, world, device) as stage:
        return _train_tokenizer(recipe, stage)


def _train_tokenizer(recipe: TokenizerRecipe, stage: Stage) -> dict[str, Any]:
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


def pretrain(
    recipe: PretrainRecipe,
    request: RunRequest,
    tokenizer: str | Path | Tokenizer | None = None,
    bank: str | Path | None = None,
    init: str = NOTHING,
) -> dict[str, Any]:
    """Stage 2: masked image modelling (paper, section 2.3) into `request.out`.

    Args:
        recipe: What to train; its `tokenizer` field is stage 1.
        request: Where from, where to, and how.
        tokenizer: The run folder of a trained tokenizer, DALL-E's `encoder.pkl`, or any object that
            is a tokenizer; without it the recipe's tokenizer is trained first, into the folder
            `tokenizer` of the run.
        bank: A token bank (`beit bank`) to take the codes from; it brings its tokenizer.
        init: What to go on from: a run, a model folder or a weight file; "none" draws the weights.
            The tokenizer of such a run is taken along when no other is given.
    """
    device = choose_device(request.device)
    with process_group(device.type) as world:
        require_same_start(request.out, init)
        start = None if init == NOTHING else go_on_from(recipe.encoder, init)
        codes, sources = None, None
        own = _own(recipe, tokenizer, bank)
        refuse_other_own(request.out, own)
        own = None if own is None else own.on(device)
        if bank is not None:
            codes = TokenBank(Path(bank))
            tokenizer = tokenizer or codes.folder / TOKENIZER
            recipe = recipe_with_bank(recipe, codes)
        recipe = with_token_precision(recipe, device, request.out, codes)
        if start is not None and recipe.objective.target == "tokens":
            tokenizer = tokenizer or tokenizer_beside(init)
        given: RunTokenizer | None = own
        if own is None and tokenizer is not None:
            given = _given_tokenizer(recipe, tokenizer, request.out)
        if start is not None:
            refuse_other_head(recipe, start, given)
        if codes is not None and isinstance(given, DiscreteVAE):
            sources = open_parts(request.data, rescan=True)
            refuse_other_bank(recipe, codes, given, sources[0], world)
        with open_stage(recipe, request, world, device, sources) as stage:
            if start is not None and world.main:
                start.keep(
                    stage.run.path
                )  # before the tokenizer's training, that may be broken off
            vae = _tokenizer_of(stage, given)
            task = pretrain_task(recipe, vae)
            if start is not None:
                put_into(task.model, start, "" if vae is None else fingerprint_of(vae))
                _tell(start, stage)
            return _pretrain(recipe, stage, task, vae, codes)


def _tell(start: Start, stage: Stage) -> None:
    if stage.world.main:
        start.keep(stage.run.path)
        print(f"pretrain: {start.sentence}", file=sys.stderr, flush=True)


def _pretrain(
    recipe: PretrainRecipe,
    stage: Stage,
    task: PretrainTask,
    vae: RunTokenizer | None,
    codes: TokenBank | None,
) -> dict[str, Any]:
    grid = encoder_config_of(recipe.encoder).grid
    # With codes at hand nobody looks at the tokenizer's view.
    token_view = None if vae is None or codes is not None else view_size(vae, grid)
    views = view_settings(recipe.views, patch_view=recipe.encoder.image_size, token_view=token_view)
    masks = mask_plan(recipe)
    if isinstance(vae, DiscreteVAE) and stage.world.main:
        compare_codes(recipe, vae, stage.train, stage.device, codes)
    result = stage.fit(task, stage.views(views, masks, codes), PredictionWatch(stage, vae))
    if not stage.world.main:
        return {}
    facts = {"recipe": recipe.name}
    if vae is not None:
        facts["tokenizer"] = fingerprint_of(vae)
    take_average(task, result.average)
    save_masked_image_model(stage.run.path, task.model, facts)
    return stage.finish(result, {})


class PredictionWatch:
    """Masked prediction over the whole validation set, with the baselines it must beat.

    Measured at masked places alone, also where the loss reads all of them: copying the nearest
    visible patch is always right at a visible one. Where nothing is masked, all places count.

    Args:
        stage: The run.
        tokenizer: Whose codes are predicted; None where pixels are.
    """

    def __init__(self, stage: Stage, tokenizer: RunTokenizer | None) -> None:
        assert isinstance(stage.recipe, PretrainRecipe)
        self.stage, self.recipe, self.tokenizer = stage, stage.recipe, tokenizer

    def __call__(self, task: nn.Module, step: int) -> Evaluation:
        """One evaluation."""
        assert isinstance(task, PretrainTask)
        looks = evaluation_looks(self.recipe, self.tokenizer)
        batches = self.stage.validation_batches(*looks, EVALUATION_BATCH)
        return Evaluation(masked_prediction(task.model, self.tokenizer, batches))


def evaluation_looks(
    recipe: PretrainRecipe, tokenizer: RunTokenizer | None
) -> tuple[ViewSettings, MaskPlan]:
    """How pictures are cut and masked to measure what a recipe predicts."""
    grid = encoder_config_of(recipe.encoder).grid
    views = view_settings(
        recipe.views,
        patch_view=recipe.encoder.image_size,
        token_view=None if tokenizer is None else view_size(tokenizer, grid),
        random=False,
    )
    return views, replace(mask_plan(recipe), recover="masked")


def masked_prediction(
    model: MaskedImageModel, tokenizer: Tokenizer | None, batches: Iterator[ImageBatch]
) -> dict[str, float]:
    """Measure a model's masked prediction, and the baselines, over prepared batches.

    Args:
        model: In evaluation mode, where the batches are.
        tokenizer: Whose codes are predicted; None where pixels are.
        batches: With masks and the views that are needed.
    """

    def predict(batch: ImageBatch) -> Tensor:
        assert batch.patch_view is not None and batch.masks is not None
        prediction: Tensor = model(batch.patch_view, batch.masks)
        return prediction

    if tokenizer is None:
        config = model.encoder.config
        pixels, size = Pixels(config.patch_size), (config.patch_values, config.channels)
        found = evaluate_masked_pixels(batches, predict, pixels.of, *size).as_dict()
    else:
        # A last batch of one picture has the codes that it has among others.
        alike = TokenReader(tokenizer) if isinstance(tokenizer, DiscreteVAE) else tokenizer
        target = VisualTokens(alike)

        def codes(batch: ImageBatch) -> Tensor:
            assert batch.masks is not None
            return target.of(batch).view(batch.masks.grid.shape)

        vocabulary = tokenizer.vocabulary
        found = evaluate_masked_prediction(batches, predict, codes, vocabulary).as_dict()
    return {name: float(value) for name, value in found.items()}


def take_average(task: nn.Module, average: dict[str, Tensor] | None) -> None:
    """Put the averaged weights into the task, if the run kept an average."""
    if average is None:
        return
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if name in average:
                parameter.copy_(average[name])


def _own(recipe: PretrainRecipe, tokenizer: object, bank: object) -> OwnTokenizer | None:
    """A tokenizer that is an object, and none of ours; where it has no use it is refused."""
    if tokenizer is None or isinstance(tokenizer, (str, Path, DiscreteVAE)):
        return None
    own = OwnTokenizer(tokenizer)
    if bank is not None:
        raise UserError(f"the bank {bank} brings its tokenizer: leave {own.kind} out, or the bank")
    if recipe.objective.target == "pixels":
        raise UserError(f"the tokenizer {own.kind} has no use: objective.target is pixels")
    own.require_grid(encoder_config_of(recipe.encoder).grid)
    return own


def _given_tokenizer(recipe: PretrainRecipe, given: object, out: Path) -> DiscreteVAE:
    """Load the tokenizer that was asked for, while nothing has been made yet."""
    folder = "that was given" if isinstance(given, DiscreteVAE) else given
    if recipe.objective.target == "pixels":
        raise UserError(f"--tokenizer {folder} has no use: objective.target is pixels")
    tokenizer = given if isinstance(given, DiscreteVAE) else load_tokenizer(Path(str(given)))
    own = out / "tokenizer"
    if (own / "config.json").is_file():
        if storage.fingerprint(load_tokenizer(own)) != storage.fingerprint(tokenizer):
            raise UserError(
                f"the run in {out} was made with another tokenizer than {folder}; "
                "resume with the same one or choose another --out"
            )
    elif (own / "recipe.yaml").is_file():
        raise UserError(f"the run in {out} trains its own tokenizer; resume without --tokenizer")
    return tokenizer


def _tokenizer_of(stage: Stage, given: RunTokenizer | None) -> RunTokenizer | None:
    """The frozen tokenizer of a pre-training run, trained first when none is given."""
    recipe, own = stage.recipe, stage.run.path / "tokenizer"
    assert isinstance(recipe, PretrainRecipe)
    if recipe.objective.target == "pixels":
        return None
    if isinstance(given, OwnTokenizer):
        if stage.world.main:
            given.note(own)
        return given
    if given is None:
        # Rank 0 decides: another one may look when the answer has changed already.
        if stage.world.tell("" if _is_there(own) else "train it"):
            request = replace(stage.request, out=own, hooks=NO_HOOKS)
            sources = stage.train, stage.validation
            where = stage.world, stage.device, sources
            with open_stage(recipe.tokenizer, request, *where) as first:
                _train_tokenizer(recipe.tokenizer, first)
    elif stage.world.main and not (own / "config.json").is_file():
        storage.save(given, own)  # so that the run can be read without the original
    stage.world.barrier()
    return load_tokenizer(own).to(stage.device).requires_grad_(False).eval()


def _is_there(own: Path) -> bool:
    """Whether a run has its tokenizer: trained to the last file, or a copy of a given one."""
    trained_here = (own / "recipe.yaml").is_file()
    return (own / ("result.json" if trained_here else "config.json")).is_file()
