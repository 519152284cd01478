"""Slow, obvious re-derivations for tests of attention and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def slow_relative_position_index(grid: tuple[int, int]) -> Tensor:
    """Number the offsets in a dictionary, in the order they are met when counting up."""
    height, width = grid
    row_of_offset: dict[tuple[int, int], int] = {}
    for down in range(-(height - 1), height):
        for right in range(-(width - 1), width):
            row_of_offset[down, right] = len(row_of_offset)
    patches = [(row, column) for row in range(height) for column in range(width)]
    special_to_patch = len(row_of_offset)
    rows = [[special_to_patch + 2] + [special_to_patch] * len(patches)]
    for query in patches:
        row = [special_to_patch + 1]
        for key in patches:
            row.append(row_of_offset[query[0] - key[0], query[1] - key[1]])
        rows.append(row)
    return torch.tensor(rows)


def slow_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """One image, one head, one query at a time, in Python floats: (B, H, T, d)."""
    images, heads, tokens, features = query.shape
    mixed = torch.zeros(images, heads, tokens, features)
    for image in range(images):
        for head in range(heads):
            for place in range(tokens):
                scores = [
                    float(query[image, head, place] @ key[image, head, other]) / math.sqrt(features)
                    + (0.0 if bias is None else float(bias[head, place, other]))
                    for other in range(tokens)
                ]
                exponents = [math.exp(score) for score in scores]
                for other, exponent in enumerate(exponents):
                    share = exponent / sum(exponents)
                    mixed[image, head, place] += share * value[image, head, other]
    return mixed
