"""What is refused before any work: impossible recipes, and runs that would go on as another run."""

import json
from pathlib import Path
from typing import Any

import torch

from beit.commands.assembly.build import (
    dense_settings,
    encoder_config_of,
    fit_settings,
    joint_view_settings,
    mask_plan,
    tokenizer_config,
    view_settings,
)
from beit.data.decoding.decode import BadPicture
from beit.data.sources.file_table import changed_files
from beit.data.sources.opening import Source
from beit.errors import UserError
from beit.recipes.downstream_models import COMMANDS, ClassifyRecipe, Recipe, SegmentRecipe, kind_of
from beit.recipes.models import PretrainRecipe, TokenizerRecipe
from beit.recipes.overrides import LATER_FIELDS, deciding_fields
from beit.recipes.recipe_files import read_recipe
from beit.tasks.mixing import MixSettings
from beit.tasks.tokenize import TokenizeSettings


def refuse_impossible(recipe: Recipe, ranks: int, pictures: int, device: torch.device) -> None:
    """Build every configuration of a recipe once, while nothing has been made yet.

    Raises:
        UserError: Two of its values do not go together.
    """
    if isinstance(recipe, PretrainRecipe):
        plan = mask_plan(recipe)
        assert encoder_config_of(recipe.encoder).grid == plan.grid and plan.capacity
        if recipe.objective.target == "tokens":
            refuse_impossible(recipe.tokenizer, ranks, pictures, device)
    elif isinstance(recipe, TokenizerRecipe):
        tokenizer_config(recipe.model)
        TokenizeSettings(**recipe.relaxation.model_dump())
    elif isinstance(recipe, ClassifyRecipe):
        encoder_config_of(recipe.encoder)
        MixSettings(**recipe.mixing.model_dump())
        view_settings(recipe.views, patch_view=recipe.encoder.image_size)
    else:
        encoder_config_of(recipe.encoder)
        joint_view_settings(recipe)
        dense_settings(recipe)
    micro = fit_settings(recipe.optim, recipe.engine, pictures, device).micro_batch(ranks)
    _refuse_micro_batch(recipe, ranks, micro)


def _refuse_micro_batch(recipe: Recipe, ranks: int, micro: int) -> None:
    each = f"each of {ranks} processes would get {micro} pictures at a time, but"
    mixes = isinstance(recipe, ClassifyRecipe) and (recipe.mixing.mixup or recipe.mixing.cutmix)
    if mixes and micro % 2:
        raise UserError(
            f"{each} they are mixed in pairs; choose an --optim.batch that leaves an even number"
        )
    if isinstance(recipe, SegmentRecipe) and recipe.decoder.norm == "batch" and ranks * micro < 2:
        raise UserError(
            "one picture would be learned from at a time, but batch norm needs two or more; choose "
            "a larger --optim.batch, a smaller --optim.accumulate, or --decoder.norm group"
        )


def refuse_unmeasurable(validation: Source) -> None:
    """See that there is a picture to measure on, where any are given: one that can be read.

    At the first measurement it would be too late: the steps until then would be lost.

    Raises:
        UserError: Not one can be read.
    """
    reasons: list[str] = []
    for index in range(len(validation)):
        try:
            validation.read(index)
        except BadPicture as error:
            reasons.append(error.reason)
        else:
            return
    if reasons:
        raise UserError(
            f"not one of the {len(reasons)} validation pictures of {validation.name} can be read, "
            f"{validation.identity(0)} first ({reasons[0]}); `beit data check` names them all"
        )


def refuse_other_recipe(recipe: Recipe, file: Path) -> None:
    """See that a run folder's recipe.yaml says what is asked for now.

    Raises:
        UserError: It is another task's, or a field that decides what is trained differs.
    """
    before = read_recipe(file)
    if (kind := kind_of(before)) is not type(recipe):
        raise UserError(
            f"{file.parent} holds a run of {COMMANDS[kind]}: go on with it by that command, or "
            "choose another --out"
        )
    for name, value in deciding_fields(recipe).items():
        node: Any = before
        for part in name.split("."):
            node = node.get(part, LATER_FIELDS.get(name)) if isinstance(node, dict) else node
        if node != json.loads(json.dumps(value)):
            was, now = json.dumps(node, default=str), json.dumps(value)
            raise UserError(
                f"the run in {file.parent} was made with --{name} {was}, not {now}; "
                "resume with the same recipe or choose another --out"
            )


def refuse_other_data(source: Source, file: Path, *, accepted: bool) -> bool:
    """See that the pictures are those that a run folder's source.json and list of files are of.

    Returns:
        Whether they are others, which was accepted.

    Raises:
        UserError: They are others, and that was not accepted.
    """
    before = _noted_source(file, accepted=accepted)
    change = changed_files(file.parent, source)
    if change is None and before.get("fingerprint") in (None, source.fingerprint):
        return False
    if not accepted:
        counts = f"{before.get('pictures')} to train on then, {len(source)} now"
        raise UserError(
            f"the pictures of the run in {file.parent} have changed ({counts}"
            f"{'' if change is None else f'; {change}'}): put them back, or go on with these by "
            "--accept-changed-data, or choose another --out"
        )
    return True


def _noted_source(file: Path, *, accepted: bool) -> dict[str, Any]:
    """What source.json says; when it is damaged and others are accepted, that they are others."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(before, dict):
            return before
        reason = "it is not what a run writes"
    except (OSError, ValueError) as error:
        reason = str(error)
    if accepted:
        return {"fingerprint": "unknown"}
    raise UserError(
        f"{file}, which tells what the run's pictures were, cannot be read ({reason}): copy it "
        "back, or go on with the pictures of now by --accept-changed-data"
    )
