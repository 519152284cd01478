"""Continued pre-training: masked image modelling that goes on from a model, on other pictures."""

from pathlib import Path

from beit.nn.masked_image_model import MaskedImageModel
from beit.recipes.initial import Start


def tokenizer_beside(init: str) -> Path | None:
    """The tokenizer whose codes a run of ours learned to predict, where its folder has it."""
    own = Path(init) / "tokenizer"
    return own if (own / "config.json").is_file() else None


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
