"""Relative positions against a slow oracle, on square and rectangular grids."""

import pytest
import torch

from beit.nn.position import gather_bias, relative_position_index, relative_table_rows
from oracles.oracle_attention import slow_relative_position_index

GRIDS = [(1, 1), (1, 4), (3, 3), (2, 5), (5, 2), (4, 4)]


@pytest.mark.parametrize("grid", GRIDS)
def test_index_equals_the_slow_oracle(grid: tuple[int, int]) -> None:
    assert torch.equal(relative_position_index(grid), slow_relative_position_index(grid))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_row_of_the_table_is_in_use(grid: tuple[int, int]) -> None:
    rows = set(relative_position_index(grid).flatten().tolist())
    assert rows == set(range(relative_table_rows(grid)))


def test_table_of_the_paper_has_732_rows() -> None:
    assert relative_table_rows((14, 14)) == 27 * 27 + 3


def test_gathered_bias_reads_the_table_of_each_head() -> None:
    index = relative_position_index((2, 3))
    table = torch.randn(relative_table_rows((2, 3)), 4)
    bias = gather_bias(table, index)
    assert bias.shape == (4, 7, 7)
    for head in range(4):
        assert torch.equal(bias[head], table[:, head][index])
