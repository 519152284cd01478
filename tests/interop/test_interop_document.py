"""docs/interop.md says what the command that it names prints."""

from __future__ import annotations

from interop.interop_table import DOCUMENT, HEADER, ROWS, table

BOUNDS = (1e-5, 1e-4)


def _cells(text: str) -> list[list[str]]:
    lines = text[text.index(HEADER) :].splitlines()[2 : 2 + len(ROWS)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_is_the_measured_one() -> None:
    written, measured = _cells(DOCUMENT.read_text(encoding="utf-8")), _cells(table())
    for row, now in zip(written, measured, strict=True):
        assert row[:3] == now[:3]
        for figure, again, bound in zip(row[3:], now[3:], BOUNDS, strict=True):
            assert (figure == "–") is (again == "–")
            if figure != "–":  # the last bits differ from machine to machine
                assert float(figure) < bound and float(again) < bound
