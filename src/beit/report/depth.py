"""A curve over the depth of a model as PNG bytes: how much can be read off after each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from beit.report import canvas
from beit.report.text import format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (canvas.BLUE, canvas.ORANGE, canvas.GREYS[2], canvas.INK)
_GAP = 0.06  # of the height of the axes, between two labels


@dataclass(frozen=True)
class DepthCurve:
    """One method after blocks 1, 2, ..."""

    name: str
    values: Sequence[float]  # shares of one
    marked: int | None = None  # the block, from 0, that is drawn large and named


def depth_figure(
    curves: Sequence[DepthCurve], title: str = "", *, axis: str = "", floor: float | None = None
) -> bytes:
    """Draw accuracies over the blocks.

    Args:
        curves: At most four, of the same length.
        title: The title of the figure.
        axis: What the height is; shares are shown in percent.
        floor: What knowing nothing gives, as a dashed line.
    """
    assert 0 < len(curves) <= len(_COLOURS), "one to four curves"
    depth = len(curves[0].values)
    assert depth and all(len(curve.values) == depth for curve in curves), "curves of one model"
    figure = canvas.new_figure(8.5, 4.2)
    canvas.heading(figure, title)
    axes = figure.subplots()
    canvas.quiet_axes(axes, x_label="features after block", y_label=axis)
    for curve, colour in zip(curves, _COLOURS, strict=False):
        _draw(axes, curve, colour)
    if floor is not None:
        axes.axhline(floor, color=canvas.QUIET, linewidth=1, linestyle=(0, (4, 3)))
    _scale(axes, curves, floor)
    _name_ends(axes, curves, floor)
    return canvas.to_png(figure)


def _draw(axes: Axes, curve: DepthCurve, colour: str) -> None:
    blocks = np.arange(1, len(curve.values) + 1)
    axes.plot(blocks, curve.values, color=colour, linewidth=1.8, marker="o", markersize=4)
    if curve.marked is not None:
        block, value = curve.marked + 1, curve.values[curve.marked]
        axes.plot([block], [value], marker="o", markersize=11, color=colour, alpha=0.3)
        axes.plot([block], [value], marker="o", markersize=7, color=colour)


def _scale(axes: Axes, curves: Sequence[DepthCurve], floor: float | None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    heights = [value for curve in curves for value in curve.values]
    heights += [] if floor is None else [floor]
    low, high = min(heights), max(heights)
    margin = 0.08 * (high - low) or 0.05
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0.6, len(curves[0].values) + 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _name_ends(axes: Axes, curves: Sequence[DepthCurve], floor: float | None) -> None:
    """Name each curve beside its end, in its colour; labels keep clear of each other."""
    low, high = axes.get_ylim()
    coloured = zip(curves, _COLOURS, strict=False)
    words = [(curve.values[-1], _words(curve), colour) for curve, colour in coloured]
    if floor is not None:
        words.append((floor, f"most frequent class {format_percent(floor)}", canvas.QUIET))
    words.sort(key=lambda entry: entry[0])
    heights = _apart([(value - low) / (high - low) for value, _, _ in words], _GAP)
    for (_, text, colour), height in zip(words, heights, strict=True):
        label = axes.text(1.012, height, text, va="center", color=colour)
        label.set(transform=axes.transAxes, fontsize=canvas.SMALL_SIZE)
        canvas.plain(label)


def _words(curve: DepthCurve) -> str:
    if curve.marked is None:
        return curve.name
    value = format_percent(curve.values[curve.marked])
    return f"{curve.name}: block {curve.marked + 1}, {value}"


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights, moved as little as it takes to lie a gap apart, around where they were."""
    moved = list(heights)
    for _ in range(50):
        for above in range(1, len(moved)):
            lacking = gap - (moved[above] - moved[above - 1])
            if lacking > 1e-9:
                moved[above - 1] -= lacking / 2
                moved[above] += lacking / 2
    return moved
