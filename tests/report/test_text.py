"""Numbers read well; strange names are shown and do nothing."""

import math

import pytest

from beit.report.tables import (
    Table,
    display_width,
    markdown_table,
    numeric_columns,
    spread_cell,
    text_table,
)
from beit.report.text import format_number, format_percent, printable, shortened


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1797, "1,797"),
        (0.0115312, "0.01153"),
        (4.2, "4.200"),
        (1234.567, "1,235"),
        (3.2e-7, "3.2e-7"),
        (-0.5, "-0.5000"),
        (0.0, "0"),
        (math.nan, "not a number"),
        (-math.inf, "minus infinite"),
        (92_089_856, "92,089,856"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


def test_percent() -> None:
    assert format_percent(0.4321) == "43.2 %"
    assert format_percent(math.nan) == "not a number"


def test_printable_keeps_letters_and_shows_what_would_act() -> None:
    assert printable("Käse 猫 🐈 👩\u200d🔬") == "Käse 猫 🐈 👩\u200d🔬"
    assert printable("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert printable("a\u202egpj.exe") == r"a\u202egpj.exe"
    undecodable = b"\xff.jpg".decode("utf-8", "surrogateescape")
    assert printable(undecodable).encode("utf-8") == rb"\udcff.jpg"
    assert printable("a\nb", keep="\n") == "a\nb"


TABLE = Table(
    ["method", "2 labels", "猫"],
    [["from scratch", "45.0 ± 4.1", "x"], ["pre-trained", "9.5 ± 0.3", "–"]],
)


def test_text_table_lines_up() -> None:
    lines = text_table(TABLE).split("\n")
    assert lines == [
        "method          2 labels  猫",
        "────────────  ──────────  ──",
        "from scratch  45.0 ± 4.1  x",
        "pre-trained    9.5 ± 0.3  –",
    ]
    assert text_table(TABLE._replace(caption="Few labels")).startswith("Few labels\n\nmethod")


def test_a_cell_cannot_drive_a_terminal_or_break_its_line() -> None:
    text = text_table(Table(["name"], [["\x1b[2J\nboo"]]))
    assert "\x1b" not in text
    assert len(text.split("\n")) == 3


def test_markdown_table_aligns_numbers_and_escapes_markup() -> None:
    lines = markdown_table(Table(["name", "n"], [["a|b_c <img>\n", "1,797"]])).split("\n")
    assert lines == ["| name | n |", "| --- | ---: |", r"| a\|b\_c &lt;img&gt;\\n | 1,797 |"]


def test_numbers_are_recognised() -> None:
    cells = ["1,797", "-0.5", "43.2 %", "81.3 ± 2.1", "3.2e-7", "–"]
    table = Table(["n", "s"], [[cell, "tiny 2"] for cell in cells])
    assert numeric_columns(table) == [True, False]


def test_spread_cells() -> None:
    assert spread_cell(0.8134, 0.0213, scale=100) == "81.3 ± 2.1"
    assert spread_cell(81.3, None, digits=2) == "81.30"


def test_display_width() -> None:
    assert display_width("猫e\u0301") == 3


def test_long_names_keep_their_ends() -> None:
    short = shortened("a kind of warbler, number 17", 20)
    assert len(short) <= 20 and short.startswith("a kind of") and short.endswith("17")
    assert shortened("tench", 20) == "tench"
