"""Tables of text: for the terminal, for Markdown, and as plain data for the page."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from beit.report.text import printable

_NUMBER = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?%)?( ± [\d.,]+( ?%)?)?")


class Table(NamedTuple):
    """A header, rows of cells, and a caption; every cell is text already."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


def spread_cell(mean: float, deviation: float | None, *, digits: int = 1, scale: float = 1) -> str:
    """Write a mean and its spread: `81.3 ± 2.1`; without a spread the mean alone.

    Args:
        mean: The mean.
        deviation: The standard deviation, or None when there was one value only.
        digits: Decimals of both.
        scale: Multiplies both: 100 turns shares into percent.
    """
    text = f"{scale * mean:.{digits}f}"
    return text if deviation is None else f"{text} ± {scale * deviation:.{digits}f}"


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold only numbers (blank cells and dashes aside), so belong to the right."""
    columns = range(len(table.header))
    cells = [[row[column].strip() for row in table.rows] for column in columns]
    filled = [[cell for cell in column if cell not in ("", "-", "–")] for column in cells]
    return [bool(column) and all(_NUMBER.fullmatch(cell) for cell in column) for column in filled]


def text_table(table: Table) -> str:
    """Lay the table out for a terminal: aligned columns, numbers to the right, two spaces apart."""
    _check(table)
    lines = [[printable(cell) for cell in line] for line in (table.header, *table.rows)]
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    right = numeric_columns(table)
    rule = ["─" * width for width in widths]
    laid_out = [lines[0], rule, *lines[1:]]
    text = "\n".join("  ".join(map(_pad, line, widths, right)).rstrip() for line in laid_out)
    return f"{printable(table.caption)}\n\n{text}" if table.caption else text


def markdown_table(table: Table) -> str:
    """Write the table in GitHub's Markdown, numbers aligned to the right."""
    _check(table)
    marks = ["---:" if right else "---" for right in numeric_columns(table)]
    lines = [table.header, marks, *table.rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines)


def display_width(text: str) -> int:
    """Columns a terminal uses for the text: wide characters take two, combining ones none."""
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _pad(cell: str, width: int, right: bool) -> str:
    space = " " * (width - display_width(cell))
    return space + cell if right else cell + space


def _markdown_cell(cell: str) -> str:
    """Keep a cell from ending early or becoming markup."""
    escaped = printable(cell).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", escaped)


def _check(table: Table) -> None:
    assert all(len(row) == len(table.header) for row in table.rows), "a row of another length"
