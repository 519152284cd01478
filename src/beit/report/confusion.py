"""Which classes are taken for which: the confusion of a classifier as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beit.report import canvas
from beit.report.text import format_percent, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

# C classes, S squares along a side of the picture
_WIDTH = 11.0  # inches, as the other charts
_MOST_WRITTEN = 12  # classes whose shares are written into the squares
_MOST_NAMED = 60  # classes that are named beside them
_MOST_SQUARES = 250  # along a side; with more classes a square stands for several
_MOST_LISTED = 10
_LONGEST_NAME = 26  # beside the squares
_LONGEST_LEVEL = 14  # below two or three of them
_LONGEST_LISTED = 20


def confusion_figure(confusion: ArrayLike, classes: Sequence[str], title: str = "Answers") -> bytes:
    """Draw a confusion, readable for 2 classes as for 1,000, as PNG.

    Rows are normalised: a square shows the share of the pictures of one class that got an answer,
    blue where it is right and orange where it is wrong (on a square-root scale, so that rare
    mistakes are seen). Rows of classes without a picture are grey. The mistakes made most often and
    the classes recognised least are listed beside it.

    Args:
        confusion: (C, C) pictures; rows are the truth, columns the answer.
        classes: The names.
        title: Begins the title; the share of right answers follows.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    assert counts.shape == (len(classes), len(classes)) and (counts >= 0).all(), "not a confusion"
    names = [canvas.drawable(name) for name in classes]
    total, right = int(counts.sum()), int(counts.trace())
    height = float(np.interp(len(names), [2, _MOST_WRITTEN], [3.6, 6.2]))
    figure = canvas.new_figure(_WIDTH, height)
    found = f"{format_percent(right / total)} of {total:,} right" if total else "nothing counted"
    canvas.heading(figure, f"{title}: {found}")
    axes, beside = figure.subplots(1, 2, width_ratios=(1.45, 1))
    _draw(axes, counts, names)
    _list(beside, counts, names)
    return canvas.to_png(figure)


def _draw(axes: Axes, counts: Counts, names: Sequence[str]) -> None:
    per_square = -(-len(names) // _MOST_SQUARES)
    title = "rows: the truth, columns: the answer"
    if per_square > 1:
        title += f"; a square: {per_square} x {per_square} classes, their worst mistake"
    canvas.quiet_axes(axes, title)
    axes.grid(False)
    count = len(names)
    pixels = _squares(counts, per_square)
    edge = per_square * len(pixels) - 0.5  # the last square may be partly empty
    axes.imshow(pixels, interpolation="nearest", extent=(-0.5, edge, edge, -0.5))
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    if count <= _MOST_NAMED:
        _name_squares(axes, names)
    else:
        canvas.plain(axes.set_xlabel("number of the class", fontsize=canvas.SMALL_SIZE))
        axes.xaxis.label.set_color(canvas.QUIET)
    if count <= _MOST_WRITTEN:
        _write_shares(axes, counts)


def _squares(counts: Counts, per_square: int) -> Floats:
    """The colours, (S, S, 3) in [0, 1]."""
    shares = _shares(counts)
    correct = np.where(np.isnan(diagonal := shares.diagonal()), 0, diagonal)
    wrong = np.nan_to_num(shares)
    np.fill_diagonal(wrong, 0)
    missing = np.isnan(diagonal)
    size = -(-len(counts) // per_square)
    padding = size * per_square - len(counts)
    blocks = np.pad(wrong, ((0, padding), (0, padding)))
    blocks = blocks.reshape(size, per_square, size, per_square).max((1, 3))
    pixels = _blend(canvas.ORANGE, np.sqrt(blocks))
    starts = np.arange(0, len(counts), per_square)
    present = np.add.reduceat((~missing).astype(np.float64), starts)
    mean = np.add.reduceat(correct, starts) / np.maximum(present, 1)
    # In a joint square of the diagonal right answers and mistakes meet; the larger is shown.
    on = np.arange(size)
    shown = (mean >= blocks[on, on]) & (present > 0)
    pixels[on[shown], on[shown]] = _blend(canvas.BLUE, mean)[shown]
    pixels[present == 0] = _rgb(canvas.FAINT)
    return pixels


def _shares(counts: Counts) -> Floats:
    """Each row as shares of its sum; NaN without pictures."""
    sums = counts.sum(1, keepdims=True)
    empty = np.full(counts.shape, np.nan)
    return np.asarray(np.divide(counts, sums, out=empty, where=sums > 0))


def _blend(colour: str, amount: Floats) -> Floats:
    """From paper (0) to a colour (1); adds an axis of three."""
    return np.asarray(1 - amount[..., None] * (1 - _rgb(colour)))


def _rgb(colour: str) -> Floats:
    levels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return np.array(levels)


def _name_squares(axes: Axes, names: Sequence[str]) -> None:
    places, upright = range(len(names)), len(names) > 3
    axes.set_yticks(places, [shortened(name, _LONGEST_NAME) for name in names])
    longest = _LONGEST_NAME if upright else _LONGEST_LEVEL
    below = [shortened(name, longest) for name in names]
    axes.set_xticks(places, below, rotation=90 if upright else 0)
    size = float(np.interp(len(names), [20, _MOST_NAMED], [canvas.SMALL_SIZE, 4.5]))
    axes.tick_params(colors=canvas.INK, labelsize=size)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        canvas.plain(text)


def _write_shares(axes: Axes, counts: Counts) -> None:
    shares = _shares(counts)
    for row, column in np.argwhere(counts):
        share = shares[row, column]
        dark = share > 0.55 if row == column else share > 0.4
        text = axes.text(column, row, _percent(share), ha="center", va="center")
        text.set(color=canvas.PAPER if dark else canvas.INK, fontsize=canvas.SMALL_SIZE)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"


def _list(axes: Axes, counts: Counts, names: Sequence[str]) -> None:
    axes.set_axis_off()
    shown = [shortened(name, _LONGEST_LISTED) for name in names]
    if len(names) > _MOST_NAMED:  # the axes have numbers
        shown = [f"{place} {name}" for place, name in enumerate(shown)]
    parts = [
        ("Most frequent mistakes", _mistakes(counts, shown) or [("none", "")]),
        ("Least recognised", _hardest(counts, shown) or [("nothing counted", "")]),
    ]
    step = min(0.09, 1 / (2 + sum(len(part) + 1 for _, part in parts)))
    height = 1.0
    for heading, part in parts:
        _line(axes, height, heading, "", {"fontweight": "bold"})
        for left, right in part:
            height -= step
            _line(axes, height, left, right, {})
        height -= 2 * step


def _mistakes(counts: Counts, names: Sequence[str]) -> list[tuple[str, str]]:
    """Truth and answer, and how many of how many; the most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    most = min(_MOST_LISTED, int((wrong > 0).sum()))
    pairs = np.argsort(-wrong, axis=None, kind="stable")[:most].tolist()
    return [
        (
            f"{names[truth]} as {names[answer]}",
            f"{wrong[truth, answer]:,} of {counts[truth].sum():,}",
        )
        for truth, answer in (divmod(pair, len(names)) for pair in pairs)
    ]


def _hardest(counts: Counts, names: Sequence[str]) -> list[tuple[str, str]]:
    """Classes with pictures and the share of those named rightly, the least first."""
    accuracy = _shares(counts).diagonal()
    order = np.argsort(accuracy, kind="stable")[:_MOST_LISTED].tolist()  # NaN comes last
    return [
        (names[place], f"{format_percent(accuracy[place])} of {counts[place].sum():,}")
        for place in order
        if np.isfinite(accuracy[place])
    ]


def _line(axes: Axes, height: float, left: str, right: str, style: dict[str, Any]) -> None:
    style = {"fontsize": canvas.SMALL_SIZE, "color": canvas.INK, "va": "top", **style}
    style["transform"] = axes.transAxes
    canvas.plain(axes.text(0.02, height, left, **style))
    canvas.plain(axes.text(1.0, height, right, ha="right", **style))
