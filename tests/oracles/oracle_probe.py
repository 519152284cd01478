"""The reference's linear probe, written out: a list of layers, one loss each, added up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def slow_heads(
    features: Sequence[Tensor],
    labels: Tensor,
    first: Tensor,
    orders: Sequence[Sequence[int]],
    batch: int,
    rate: float,
    decay: float,
) -> list[nn.Linear]:
    """Train a linear layer a block on features that are standardised already.

    Args:
        features: (n, D) a block.
        labels: (n,) classes.
        first: (D, C) weights that all begin with.
        orders: The order of the pictures in each epoch.
        batch: Pictures a step.
        rate: At the beginning of the cosine over epochs.
        decay: Weight decay.
    """
    layers = [nn.Linear(*first.shape) for _ in features]
    for layer in layers:
        layer.weight.data.copy_(first.T)
        layer.bias.data.zero_()
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    for epoch, order in enumerate(orders):
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * epoch / len(orders)))
        for start in range(0, len(order), batch):
            part = torch.tensor(list(order[start : start + batch]))
            loss = torch.zeros(())
            for layer, values in zip(layers, features, strict=True):
                loss = loss + functional.cross_entropy(layer(values[part]), labels[part])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    return layers
