"""Work, parameters and activations, counted from the architecture: 1 multiply-add = 2 FLOP."""

# N patches, T = N + 1 tokens, D width, L depth, H heads, M places of the head, K codes

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from beit.nn.config import EncoderConfig


class Work(NamedTuple):
    """Forward FLOP an image, by part. Norms, softmax, GELU and additions are not counted."""

    patches: int
    linears: int
    attention: int
    head: int

    @property
    def forward(self) -> int:
        """All parts together."""
        return sum(self)

    @property
    def training(self) -> int:
        """Forward and backward: twice more, except that images need no gradient."""
        return 3 * self.forward - self.patches


def count_work(config: EncoderConfig, head_places: int, vocabulary: int) -> Work:
    """FLOP an image, by part, every block counted whole.

    (The model runs the last block's MLP at the listed places only: the work saved is our gain.)

    Args:
        config: The encoder.
        head_places: Places the head predicts: masked ones, or 1 for a classifier.
        vocabulary: Outputs of the head a place.
    """
    tokens, width = config.patches + 1, config.width
    weights = 4 * width * width + 2 * width * config.hidden  # of a block's linear layers
    return Work(
        patches=2 * config.patches * config.patch_values * width,
        linears=2 * config.depth * tokens * weights,
        attention=2 * config.depth * 2 * tokens * tokens * width,  # scores, then mixing values
        head=2 * head_places * width * vocabulary,
    )


def count_parameters(module: nn.Module) -> int:
    """Numbers that are learned; a parameter in two places counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_activations(
    config: EncoderConfig, head_places: int | None, outputs: int, *, half: bool
) -> int:
    """Bytes a picture that the forward pass keeps for the backward pass.

    What autograd saves: the inputs of norms (float32 always: the residual stream is not autocast),
    those of linear layers and of GELU, queries, keys, values and what attention made of them, and
    the float32 log-probabilities of the loss. No attention keeps its scores (see `attend`), and
    LayerScale keeps nothing (see `scaled_linear`).

    Args:
        config: The encoder; with `checkpointing` a block keeps its input and one is recomputed.
        head_places: Places M that the last block's MLP and the head are computed at; None for a
            classifier: all of them, and their mean for the head.
        outputs: Of the head, a place.
        half: Whether products are computed in bfloat16.
    """
    tokens, width = config.patches + 1, config.width
    product = 2 if half else 4  # bytes of a number that is multiplied
    dropped = product if config.dropout else 0  # on a CPU; a GPU keeps less
    attention = tokens * ((4 + 5 * product) * width + 4 * config.heads)
    mlp = (4 + product + dropped) * width + 2 * product * config.hidden  # a place
    read = tokens if head_places is None else head_places
    head = read if head_places is not None else 1
    patches = product * config.patches * config.patch_values
    rest = patches + head * ((4 + product) * width + 4 * outputs)
    block, last = attention + tokens * mlp, attention + read * mlp
    if config.checkpointing:
        return 4 * config.depth * tokens * width + block + rest
    return (config.depth - 1) * block + last + rest
