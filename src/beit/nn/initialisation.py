"""All initial values of all modules, in one place (facts of the reference's pre-training code)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, nn

from beit.nn.patches import Embeddings
from beit.nn.transformer import Block

STANDARD_DEVIATION = 0.02
CLASSIFIER_DEVIATION = 0.01  # of a segmentation decoder's last layer


def truncated_normal_(values: Tensor) -> None:
    """Normal with standard deviation 0.02, redrawn beyond +-1 standard deviation.

    The cut is the reference's in pre-training; what is left has a standard deviation of 0.0108.
    Departure: it is ours in fine-tuning from nothing, too.
    """
    nn.init.trunc_normal_(
        values, std=STANDARD_DEVIATION, a=-STANDARD_DEVIATION, b=STANDARD_DEVIATION
    )


def initialise_linears_(module: nn.Module) -> None:
    """Truncated normal weights and zero biases in every linear layer inside the module."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            truncated_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_decoder_(decoder: nn.Module) -> None:
    """Initial values of a segmentation decoder, as in the reference's segmentation library.

    Convolutions keep the variance of gradients (normal, fan out, ReLU), except classifications,
    which are those with a bias: normal with standard deviation 0.01. Transposed convolutions are
    left as torch makes them.
    """
    for layer in decoder.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if layer.bias is None:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(layer.weight, std=CLASSIFIER_DEVIATION)
            nn.init.zeros_(layer.bias)


def initialise_encoder_(
    embeddings: Embeddings, blocks: Iterable[Block], layer_scale: float | None
) -> None:
    """Initial values of an encoder; bias tables and query and value biases are born zero.

    The layers that write to the residual stream are divided by sqrt(2 l) in block l = 1, 2, ...,
    which keeps the stream's variance from growing with depth (section 2.5 of the paper).
    """
    initialise_linears_(embeddings)
    for parameter in (embeddings.special_token, embeddings.mask_embedding, embeddings.positions):
        if parameter is not None:
            truncated_normal_(parameter)
    for number, block in enumerate(blocks, start=1):
        initialise_linears_(block)
        for layer in (block.attention.output, block.mlp.contract):
            layer.weight.data.div_(math.sqrt(2 * number))
        for scale in (block.attention_scale, block.mlp_scale):
            if scale is not None and layer_scale is not None:
                nn.init.constant_(scale, layer_scale)
