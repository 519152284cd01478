"""A finished pre-training measured on any pictures, under its own masks or others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from beit.commands.assembly import saved_models
from beit.commands.assembly.build import evaluation_workers
from beit.commands.assembly.own_tokenizer import NOTE
from beit.commands.assembly.stage import EVALUATION_BATCH, prepared_batches
from beit.commands.assembly.tokenizers import load_tokenizer
from beit.commands.training.masked_prediction import evaluation_looks, masked_prediction
from beit.data.reading.bad_pictures import BadPictureTaker
from beit.data.sources.opening import Source
from beit.engine.distribution import World
from beit.errors import UserError
from beit.nn.heads import MaskedPixelHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.recipes.models import PretrainRecipe
from beit.recipes.overrides import replace
from beit.recipes.recipe_files import recipe_beside, recipe_in
from beit.tokenizer import storage
from beit.tokenizer.dvae import DiscreteVAE

GROUP = "masking"  # of the recipe's fields: what an evaluation may change


def is_pre_training(path: Path) -> bool:
    """Whether a folder holds a pre-trained model of ours."""
    if not path.is_dir() or not (path / "config.json").is_file():
        return False
    return bool(saved_models.read_config(path).get("kind") == saved_models.KIND)


def masking_changed(recipe: PretrainRecipe, changes: Mapping[str, Any]) -> PretrainRecipe:
    """The recipe with other masks.

    Raises:
        UserError: Something else is to be changed, or there are no such masks.
    """
    for name in changes:
        if name.partition(".")[0] != GROUP:
            raise UserError(
                f"--{name} cannot be changed for an evaluation: only the masks can, as in "
                f"--{GROUP}.kind random"
            )
    kind = changes.get(f"{GROUP}.kind", dict(changes.get(GROUP, {})).get("kind"))
    places = {"objective.places": "all"} if kind == "none" else {}  # all places then count
    return replace(recipe, {**changes, **places})


@torch.inference_mode()
def measured(
    folder: Path,
    source: Source,
    changes: Mapping[str, Any],
    world: World,
    device: torch.device,
    unreadable: BadPictureTaker,
) -> dict[str, Any]:
    """What a run's validation rows hold, measured on a source; every rank a share.

    Args:
        folder: The run, or what was published of it.
        source: Pictures.
        changes: Recipe fields of the masks by dotted name.
        world: The ranks.
        device: Where to compute.
        unreadable: Told of pictures that are left out.

    Raises:
        UserError: The run lacks its recipe or its tokenizer, or has others than its model.
    """
    file = recipe_beside(folder)
    recipe = recipe_in(file)
    if not isinstance(recipe, PretrainRecipe):
        raise UserError(f"{file} is not the recipe of a pre-training")
    recipe = masking_changed(recipe, changes)
    model = saved_models.load_masked_image_model(folder).to(device)
    tokenizer = _tokenizer_of(folder, model)
    if tokenizer is not None:
        tokenizer = tokenizer.to(device)
    batches = prepared_batches(
        source,
        *evaluation_looks(recipe, tokenizer),
        batch_size=EVALUATION_BATCH,
        device=device,
        log=unreadable,
        share=(world.rank, world.size),
        workers=evaluation_workers(recipe.data, world, device),
    )
    found = masked_prediction(model, tokenizer, batches)
    return {**found, "masking": recipe.masking.model_dump(mode="json")}


def _tokenizer_of(folder: Path, model: MaskedImageModel) -> DiscreteVAE | None:
    """The tokenizer whose codes a model predicts; None where it predicts pixels."""
    if isinstance(model.head, MaskedPixelHead):
        return None
    own = folder / "tokenizer"
    if (own / NOTE).is_file():
        raise UserError(
            f"{folder} predicts the codes of a tokenizer that was handed over from Python; only "
            "runs whose tokenizer is in a file can be evaluated"
        )
    if not (own / "config.json").is_file():
        raise UserError(
            f"{own} is not there, whose codes {folder} predicts: copy the run's tokenizer there"
        )
    tokenizer = load_tokenizer(own)
    told = saved_models.read_config(folder).get("tokenizer")
    if told != storage.fingerprint(tokenizer):
        raise UserError(
            f"{own} is not the tokenizer whose codes {folder} learned to predict: copy that there"
        )
    return tokenizer
