"""A slow, obvious re-derivation of the reference's masking, written from its description."""

from __future__ import annotations

import math
import random

Mask = list[list[bool]]


def slow_reference_mask(
    chance: random.Random, side: int, cap: int, minimum_block: int
) -> tuple[Mask, int]:
    """One mask over a square grid and the number of blocks in it."""
    mask = [[False] * side for _ in range(side)]
    masked, blocks, failures = 0, 0, 0
    while masked < cap and failures < 10:
        area = chance.uniform(minimum_block, cap - masked)
        aspect = math.exp(chance.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        failures += 1
        if height >= side or width >= side:
            continue
        top, left = chance.randint(0, side - height), chance.randint(0, side - width)
        inside = [(top + i, left + j) for i in range(height) for j in range(width)]
        fresh = [(row, column) for row, column in inside if not mask[row][column]]
        if 0 < len(fresh) <= cap - masked:
            for row, column in fresh:
                mask[row][column] = True
            masked, blocks, failures = masked + len(fresh), blocks + 1, 0
    return mask, blocks
