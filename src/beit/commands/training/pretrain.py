"""Stage 2, end to end: from pictures and a tokenizer to a pre-trained model."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit.commands.assembly.build import (
    choose_device,
    encoder_config_of,
    mask_plan,
    pretrain_task,
    view_settings,
)
from beit.commands.assembly.continued import put_into, refuse_other_head, tokenizer_beside
from beit.commands.assembly.initial import NOTHING, Start, go_on_from, require_same_start
from beit.commands.assembly.own_tokenizer import (
    OwnTokenizer,
    RunTokenizer,
    fingerprint_of,
    refuse_other_own,
    view_size,
)
from beit.commands.assembly.saved_models import save_masked_image_model
from beit.commands.assembly.stage import (
    EVALUATION_BATCH,
    RunRequest,
    Stage,
    open_stage,
    take_average,
)
from beit.commands.assembly.token_precision import with_token_precision
from beit.commands.assembly.tokenizers import load_tokenizer
from beit.commands.preparing.banking import compare_codes, recipe_with_bank, refuse_other_bank
from beit.commands.training.masked_prediction import evaluation_looks, masked_prediction
from beit.commands.training.tokenizer import fit_tokenizer
from beit.data.sources.opening import open_parts
from beit.engine.distribution import process_group
from beit.engine.protocol import NO_HOOKS, Evaluation
from beit.errors import UserError
from beit.recipes.models import PretrainRecipe
from beit.tasks.pretrain import PretrainTask
from beit.tokenizer import storage
from beit.tokenizer.bank import TOKENIZER, TokenBank
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.protocol import Tokenizer


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
    # A model that is read has drawn its weights before.
    with torch.random.fork_rng([]), process_group(device.type) as world:
        require_same_start(request.out, init)
        start = None if init == NOTHING else go_on_from(recipe.encoder, init)
        recipe, given, codes = _asked(recipe, tokenizer, bank, start, request.out, device)
        if start is not None:
            refuse_other_head(recipe, start, given)
        sources = None
        if codes is not None and isinstance(given, DiscreteVAE):
            sources = open_parts(request.data, rescan=True)
            refuse_other_bank(recipe, codes, given, sources[0], world)
        with open_stage(recipe, request, world, device, sources) as stage:
            if start is not None and world.main:
                # Before the tokenizer's training, which may be broken off.
                start.keep(stage.run.path)
            vae = _tokenizer_of(stage, given)
            task = pretrain_task(recipe, vae)
            if start is not None:
                put_into(task.model, start, "" if vae is None else fingerprint_of(vae))
                _tell(start, stage)
            return _pretrain(recipe, stage, task, vae, codes)


def _asked(
    recipe: PretrainRecipe,
    tokenizer: str | Path | Tokenizer | None,
    bank: str | Path | None,
    start: Start | None,
    out: Path,
    device: torch.device,
) -> tuple[PretrainRecipe, RunTokenizer | None, TokenBank | None]:
    """What is predicted, and by whose codes, while nothing has been made yet.

    Returns:
        The recipe as a bank and the device settle it; the tokenizer that was given or comes along,
        None where the recipe's is to be trained or pixels are predicted; the bank's codes.
    """
    own = _own(recipe, tokenizer, bank)
    refuse_other_own(out, own)
    own = None if own is None else own.on(device)
    codes = None if bank is None else TokenBank(Path(bank))
    if codes is not None:
        tokenizer = tokenizer or codes.folder / TOKENIZER
        recipe = recipe_with_bank(recipe, codes)
    recipe = with_token_precision(recipe, device, out, codes)
    if start is not None and recipe.objective.target == "tokens":
        tokenizer = tokenizer or tokenizer_beside(start)
    if own is not None or tokenizer is None:
        return recipe, own, codes
    return recipe, _given_tokenizer(recipe, tokenizer, out), codes


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
        views, masks = evaluation_looks(self.recipe, self.tokenizer)
        batches = self.stage.validation_batches(views, masks, EVALUATION_BATCH)
        return Evaluation(masked_prediction(task.model, self.tokenizer, batches))


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
            with open_stage(recipe.tokenizer, request, stage.world, stage.device, sources) as first:
                fit_tokenizer(recipe.tokenizer, first)
    elif stage.world.main and not (own / "config.json").is_file():
        storage.save(given, own)  # so that the run can be read without the original
    stage.world.barrier()
    return load_tokenizer(own).to(stage.device).requires_grad_(False).eval()


def _is_there(own: Path) -> bool:
    """Whether a run has its tokenizer: trained to the last file, or a copy of a given one."""
    trained_here = (own / "recipe.yaml").is_file()
    return (own / ("result.json" if trained_here else "config.json")).is_file()
