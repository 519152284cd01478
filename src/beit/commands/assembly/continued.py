"""Continued pre-training: masked image modelling that goes on from a model, on other pictures."""

from pathlib import Path

from beit.commands.assembly.build import encoder_config_of
from beit.commands.assembly.initial import Start
from beit.commands.assembly.own_tokenizer import RunTokenizer, fingerprint_of
from beit.errors import UserError
from beit.nn.heads import MaskedPixelHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.recipes.models import PretrainRecipe


def tokenizer_beside(start: Start) -> Path | None:
    """The tokenizer whose codes a run of ours learned to predict, where its folder has it."""
    if start.given is None or start.given.folder is None:
        return None
    own = start.given.folder / "tokenizer"
    return own if (own / "config.json").is_file() else None


def refuse_other_head(recipe: PretrainRecipe, start: Start, tokenizer: RunTokenizer | None) -> None:
    """See that a head that is to be gone on with predicts what the recipe asks for.

    Args:
        recipe: What is to be trained.
        start: What to go on from.
        tokenizer: The one that was given; one that is yet to be trained fits no head.

    Raises:
        UserError: The head has another number of outputs.
    """
    assert start.given is not None
    head, pixels = start.given.head, recipe.objective.target == "pixels"
    if pixels and isinstance(head, MaskedPixelHead) and not start.given.tokenizer:
        wanted, what = encoder_config_of(recipe.encoder).patch_values, "pixel values of a patch"
    elif (
        tokenizer is not None
        and isinstance(head, MaskedTokenHead)
        and start.given.tokenizer == fingerprint_of(tokenizer)
    ):
        wanted, what = tokenizer.vocabulary, "codes of the tokenizer"
    else:
        return
    if head.output.out_features != wanted:
        raise UserError(
            f"{start.init} has a head with {head.output.out_features} outputs, and the {what} are "
            f"{wanted}: it was trained to predict something else, and cannot be gone on from"
        )


def put_into(model: MaskedImageModel, start: Start, tokenizer: str) -> None:
    """Replace the encoder of a fresh model, and its head if the given one predicts the same.

    A head is worth nothing for another tokenizer's codes, whatever their number: what code 7 means
    was settled when the tokenizer was trained.

    Args:
        model: Freshly drawn; changed.
        start: What to go on from; told whether its head is kept.
        tokenizer: Fingerprint of the tokenizer that is predicted now; empty for pixels.
    """
    given = start.given
    assert given is not None
    model.encoder = start.encoder
    head = given.head
    if type(head) is type(model.head) and given.tokenizer == tokenizer:
        model.head.load_state_dict(head.state_dict())
        start.head_kept = True
