"""Relative positions: which row of a bias table belongs to which pair of tokens."""

# (h, w) patch grid, N = h * w patches, H heads

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SPECIAL_ROWS = 3  # special -> patch, patch -> special, special -> special


def relative_table_rows(grid: tuple[int, int]) -> int:
    """Rows of a relative bias table: every offset between two patches, and three more."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + SPECIAL_ROWS


def relative_position_index(grid: tuple[int, int]) -> Tensor:
    """The table row of each (query, key) pair of tokens, the special token first.

    Patch pairs are numbered row-major by the offset query - key, from (-(h-1), -(w-1)) to
    (h-1, w-1); the last three rows are special -> patch, patch -> special and
    special -> special, in the reference's order.

    Returns:
        (1 + N, 1 + N) int64.
    """
    height, width = grid
    rows = torch.arange(height).repeat_interleave(width)  # (N,)
    columns = torch.arange(width).repeat(height)
    down = rows[:, None] - rows[None, :] + height - 1
    right = columns[:, None] - columns[None, :] + width - 1
    index = functional.pad(down * (2 * width - 1) + right, (1, 0, 1, 0))
    first_special = relative_table_rows(grid) - SPECIAL_ROWS
    index[0, :] = first_special
    index[:, 0] = first_special + 1
    index[0, 0] = first_special + 2
    return index


def gather_bias(table: Tensor, index: Tensor) -> Tensor:
    """Read a (rows, H) table at an (1 + N, 1 + N) index: the attention bias (H, 1 + N, 1 + N)."""
    return functional.embedding(index, table).permute(2, 0, 1).contiguous()
