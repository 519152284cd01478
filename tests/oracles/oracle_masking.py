"""A slow, obvious re-derivation of the reference's masking, written from its description."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

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


def slow_paper_mask(chance: random.Random, side: int, ratio: float, minimum_block: int) -> Mask:
    """Algorithm 1 of the paper over a square grid; sides are rounded down and cut to the grid."""
    mask = [[False] * side for _ in range(side)]
    masked = 0
    while masked <= ratio * side * side:
        area = chance.uniform(minimum_block, max(minimum_block, ratio * side * side - masked))
        aspect = chance.uniform(0.3, 1 / 0.3)
        height = max(1, min(side, math.floor(math.sqrt(area * aspect))))
        width = max(1, min(side, math.floor(math.sqrt(area / aspect))))
        top, left = chance.randint(0, side - height), chance.randint(0, side - width)
        for row in range(top, top + height):
            for column in range(left, left + width):
                mask[row][column] = True
        masked = sum(map(sum, mask))
    return mask


def plain_reference_mask(
    generator: np.random.Generator, grid: tuple[int, int], target: int, smallest: int
) -> NDArray[np.bool_]:
    """The blocks of `beit.masking.blockwise_reference`, from the same draws, patch by patch."""
    mask = np.zeros(grid, dtype=np.bool_)
    remaining = target
    while remaining > 0:
        for attempt in range(11):
            if attempt == 10 and remaining < smallest:
                return mask
            area, aspect, down, right = generator.random(4)
            patches = smallest + area * (remaining - smallest)
            ratio = 0.3 ** (1 - 2 * aspect)
            height, width = round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio))
            if attempt == 10:  # the last one is cut down to fit
                height = max(1, min(height, grid[0] - 1, remaining))
                width = max(1, min(width, grid[1] - 1, remaining // height))
            elif not (0 < height < max(2, grid[0]) and 0 < width < max(2, grid[1])):
                continue
            top, left = int(down * (grid[0] - height + 1)), int(right * (grid[1] - width + 1))
            block = mask[top : top + height, left : left + width]
            new = int((~block).sum())
            if 0 < new <= remaining:
                block[:] = True
                remaining -= new
                break
    return mask
