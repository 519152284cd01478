"""The run report as one HTML file: no scripts, nothing fetched, every word from outside escaped.

The page forbids itself everything but its own stylesheet (named by its hash) and pictures that lie
inside it, so that a file name or a class name cannot make a browser do anything.
"""

import base64
import hashlib
import html
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from beit.files import atomic_write_text
from beit.report.canvas import DENSITY
from beit.report.tables import Table, numeric_columns
from beit.report.text import printable

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NUMBER_CLASS = ' class="number"'


class Figure(NamedTuple):
    """A picture with what is said below it, and what is said instead of it."""

    png: bytes
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page: paragraphs, then figures, then tables."""

    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class RunReport:
    """Everything the page says, as plain data; empty parts are left out."""

    title: str
    subtitle: str = ""
    summary: Sequence[tuple[str, str]] = ()  # (name, value), shown first
    sections: Sequence[Section] = ()
    recipe: str = ""  # as text, folded away
    command: str = ""  # the command line of the run
    footnotes: Sequence[str] = ()


def write(report: RunReport, path: Path) -> None:
    """Write the page; a reader finds the old page or the new one, never half of one."""
    atomic_write_text(path, render(report))


def render(report: RunReport) -> str:
    """Turn the report into one self-contained HTML file, as text to be written in UTF-8."""
    style = files("beit.report").joinpath("style.css").read_text(encoding="utf-8")
    body = [
        _header(report),
        *(_section(section, number) for number, section in enumerate(report.sections, start=1)),
        _provenance(report),
        _footer(report.footnotes),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(style)}">',
            '<meta name="referrer" content="no-referrer">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(report.title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            *(part for part in body if part),
            "</body>",
            "</html>",
            "",
        ]
    )


def escape(text: str, *, keep: str = "") -> str:
    """Make text from outside harmless in the page, between tags and in quoted attributes."""
    return html.escape(printable(text, keep=keep), quote=True)


def _policy(style: str) -> str:
    """Nothing is allowed but pictures inside the file and the stylesheet with this very text."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _header(report: RunReport) -> str:
    parts = [f"<header>\n<h1>{escape(report.title)}</h1>"]
    if report.subtitle:
        parts.append(f'<p class="subtitle">{escape(report.subtitle, keep=chr(10))}</p>')
    if report.summary:
        pairs = (
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for name, value in report.summary
        )
        parts.append('<dl class="summary">\n' + "\n".join(pairs) + "\n</dl>")
    if len(report.sections) > 1:
        items = (
            f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
            for number, section in enumerate(report.sections, start=1)
        )
        parts.append('<nav aria-label="Sections"><ul>\n' + "\n".join(items) + "\n</ul></nav>")
    return "\n".join([*parts, "</header>"])


def _section(section: Section, number: int) -> str:
    return "\n".join(
        [
            f'<section id="section-{number}">',
            f"<h2>{escape(section.title)}</h2>",
            *(f"<p>{escape(paragraph)}</p>" for paragraph in section.text),
            *(_figure(Figure(*figure)) for figure in section.figures),
            *(_table(Table(*table)) for table in section.tables),
            "</section>",
        ]
    )


def _figure(figure: Figure) -> str:
    width, height = png_size(figure.png)
    data = base64.b64encode(figure.png).decode("ascii")
    alt = escape(figure.alt or figure.caption)
    image = (
        f'<img src="data:image/png;base64,{data}" width="{-(-width // DENSITY)}" '
        f'height="{-(-height // DENSITY)}" alt="{alt}">'
    )
    caption = f"\n<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    return f'<figure>\n<div class="sheet">{image}</div>{caption}\n</figure>'


def png_size(png: bytes) -> tuple[int, int]:
    """The (width, height) of a PNG in pixels, read from its first chunk."""
    assert png[:8] == _PNG_SIGNATURE and png[12:16] == b"IHDR", "figures are PNG files"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def _table(table: Table) -> str:
    right = numeric_columns(table)
    head = _row("th", table.header, right, ' scope="col"')
    body = "\n".join(_row("td", row, right) for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>\n" if table.caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="group"><table>\n{caption}'
        f"<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _row(tag: str, cells: Sequence[str], right: Sequence[bool], attributes: str = "") -> str:
    marked = (
        f"<{tag}{attributes}{_NUMBER_CLASS if is_number else ''}>{escape(cell)}</{tag}>"
        for cell, is_number in zip(cells, right, strict=True)
    )
    return "<tr>" + "".join(marked) + "</tr>"


def _provenance(report: RunReport) -> str:
    """How the run was made: its command and its recipe."""
    if not report.command and not report.recipe:
        return ""
    parts = ['<section id="provenance">', "<h2>How this run was made</h2>"]
    if report.command:
        parts.append(f'<pre class="command">{escape(report.command)}</pre>')
    if report.recipe:
        text = escape(report.recipe.rstrip(), keep="\n\t")
        parts.append(
            f"<details>\n<summary>The whole recipe</summary>\n<pre>{text}</pre>\n</details>"
        )
    return "\n".join([*parts, "</section>"])


def _footer(footnotes: Sequence[str]) -> str:
    if not footnotes:
        return ""
    notes = "\n".join(f"<p>{escape(note)}</p>" for note in footnotes)
    return f"<footer>\n{notes}\n</footer>"
