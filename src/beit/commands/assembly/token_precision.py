"""In how many bits the frozen tokenizer of a run computes, where the recipe leaves it open.

Decided once and written into the run's recipe.yaml: codes depend on it, and so does a bank of them.
"""

from pathlib import Path

import torch

from beit.commands.assembly.build import choose_token_precision
from beit.recipes.models import PretrainRecipe
from beit.recipes.overrides import LATER_FIELDS, replace
from beit.recipes.recipe_files import read_recipe
from beit.tokenizer.bank import TokenBank

FIELD = "tokens.precision"


def with_token_precision(
    recipe: PretrainRecipe,
    device: torch.device,
    out: Path | None = None,
    bank: TokenBank | None = None,
) -> PretrainRecipe:
    """The recipe with "auto" replaced by what it means here.

    It is what the run in `out` was made with, if there is one; else what the bank was; else
    "float16" on a CUDA device, where DALL-E's own code computes the reference's tokenizer in it,
    and "float32" elsewhere.

    Args:
        recipe: A recipe that says something else than "auto" is given back as it is.
        device: Where the tokenizer will compute.
        out: Folder of a run, which may not exist yet.
        bank: Codes that the run takes.

    Raises:
        UserError: The recipe in the run's folder cannot be read.
    """
    if recipe.tokens.precision != "auto":
        return recipe
    found: str = choose_token_precision("auto", device)
    if bank is not None:
        found = bank.manifest.origin.precision
    if out is not None and (out / "recipe.yaml").is_file():
        tokens = read_recipe(out / "recipe.yaml").get("tokens")
        before = tokens.get("precision") if isinstance(tokens, dict) else None
        found = str(before or LATER_FIELDS[FIELD])
    return replace(recipe, {FIELD: found})
