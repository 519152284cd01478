"""The look all figures share: paper, ink, a few quiet colours, and the way to a PNG.

Only matplotlib's objects are used and never its global state, so figures can be drawn from any
thread and the same input gives the same bytes.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

from beit.report.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

DENSITY = 2  # pixels of a PNG for each pixel of the page, so that figures stay sharp
DPI = 100 * DENSITY
INK, QUIET, FAINT, PAPER = "#1f2328", "#656d76", "#d8dee4", "#ffffff"
BLUE, ORANGE = "#2563a8", "#c2571a"
GREYS = ("#c9ced6", "#9aa3af", "#6b7683", "#454d57")
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 11.0, 9.0, 8.0


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """An empty figure of so many inches, drawn off screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    if constrained:
        figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """Draw the figure; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def drawable(text: str) -> str:
    """Replace what the font cannot draw: names from outside may hold any character."""
    glyphs = _glyphs()
    return "".join(
        character if ord(character) in glyphs else "\N{REPLACEMENT CHARACTER}"
        for character in printable(text)
    )


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())


def plain(text: Text) -> Text:
    """Take the text literally: a `$` in a name is not mathematics."""
    text.set_text(drawable(text.get_text()))
    text.set_parse_math(False)
    text.set_fontfamily("DejaVu Sans")
    return text


def heading(figure: Figure, title: str) -> None:
    """Put the title of the whole figure at its upper left."""
    if title:
        plain(
            figure.suptitle(
                title, x=0.008, ha="left", fontsize=TITLE_SIZE, fontweight="bold", color=INK
            )
        )


def quiet_axes(axes: Axes, title: str = "", x_label: str = "", y_label: str = "") -> None:
    """Leave only what helps reading: two thin spines, a faint grid, small labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(which="both", colors=QUIET, labelsize=SMALL_SIZE, length=0)
    axes.grid(True, axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    plain(axes.set_xlabel(x_label, fontsize=SMALL_SIZE, color=QUIET))
    plain(axes.set_ylabel(y_label, fontsize=SMALL_SIZE, color=QUIET))
    plain(axes.set_title(title, loc="left", fontsize=TEXT_SIZE, color=INK, pad=16))


def thousands(axes: Axes) -> None:
    """Write the steps below as 10,000 and not as 1e4; whole numbers only."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
