"""Work and parameters, counted from the architecture: 1 multiply-add = 2 FLOP."""

# N patches, T = N + 1 tokens, D width, L depth, K codes

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
    """FLOP an image, by part.

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


def count_flops(config: EncoderConfig, head_places: int, vocabulary: int) -> int:
    """Forward FLOP an image; arguments as in `count_work`.

    The whole of every block is counted, also what `Encoder.forward(read=...)` spares the last.
    """
    return count_work(config, head_places, vocabulary).forward


def count_parameters(module: nn.Module) -> int:
    """Numbers that are learned; a parameter in two places counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
