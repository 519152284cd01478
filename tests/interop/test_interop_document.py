"""docs/interop.md says what the command that it names prints."""

from __future__ import annotations

import pytest

from interop.interop_table import DOCUMENT, HEADER, ROWS, table

BOUNDS = (1e-5, 1e-4)
GRAPH_BOUND = 1e-4


def _cells(text: str) -> list[list[str]]:
    lines = text[text.index(HEADER) :].splitlines()[2 : 2 + len(ROWS)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_table_is_the_measured_one(quick: bool) -> None:
    written = _cells(DOCUMENT.read_text(encoding="utf-8"))
    for row, cells, now in zip(ROWS, written, _cells(table(quick=quick)), strict=True):
        assert cells[:3] == now[:3]
        bounds = (GRAPH_BOUND, GRAPH_BOUND) if row.slow else BOUNDS
        for figure, again, bound in zip(cells[3:], now[3:], bounds, strict=True):
            if figure != "–":  # the last bits differ from machine to machine
                assert float(figure) < bound
            if not (quick and row.slow):
                assert (figure == "–") is (again == "–")
                assert again == "–" or float(again) < bound
