"""Charts of a run as PNG bytes: curves, codebook use, bars. Pure functions of plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from beit.report import canvas
from beit.report.metrics import Row, Series, is_smooth, series, smooth, warmup_end
from beit.report.text import format_number, format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Heights = NDArray[np.floating[Any]]

_LABELS = {"loss": "loss", "lr": "learning rate"}
_WIDTH = 11.0  # inches, of a chart: about as wide as a page of pictures
_MOST_POINTS = 2_000  # of a raw curve; more than a figure has pixels
_LABEL_GAP = 0.09  # of the height of the axes, between two labels at the end of curves


def curves(
    rows: Sequence[Row],
    keys: Sequence[str],
    title: str = "",
    labels: Mapping[str, str] | None = None,
) -> bytes:
    """Draw metrics over the steps, one panel a metric.

    Training values are shown raw (faint) and smoothed (strong), validation values as points; the
    warm-up of the learning rate is shaded. The numbers at the ends are the last smoothed training
    value and the last validation value. Metrics that were never recorded say so.

    Args:
        rows: The rows of metrics.jsonl.
        keys: The metrics to draw, in this order.
        title: The title of the figure.
        labels: What to call the metrics; their key by default.
    """
    names = {**_LABELS, **(labels or {})}
    across = 1 if len(keys) == 1 else 2
    down = max(1, -(-len(keys) // across))
    figure = canvas.new_figure(_WIDTH, 2.7 * down + (0.35 if title else 0))
    canvas.heading(figure, title)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    end_of_warmup = warmup_end(rows)
    for axes, key in zip(panels, keys, strict=False):
        canvas.quiet_axes(axes, names.get(key, key), x_label="step")
        _curve(axes, series(rows, key), series(rows, key, "val"), end_of_warmup)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    return canvas.to_png(figure)


def _curve(axes: Axes, train: Series, validation: Series, end_of_warmup: float | None) -> None:
    if not len(train.steps) and not len(validation.steps):
        _say_nothing_there(axes)
        return
    ends = []
    low, high = np.inf, -np.inf
    if len(train.steps):
        raw = thinned(train, _MOST_POINTS)
        axes.plot(raw.steps, _finite(raw.values), color=canvas.BLUE, alpha=0.22, linewidth=0.7)
        average = _trend(train.values)
        single = "o" if len(train.steps) == 1 else None
        axes.plot(train.steps, average, color=canvas.BLUE, linewidth=1.8, marker=single)
        ends.append(("train", train.steps[-1], average[-1], canvas.BLUE))
        low, high = _robust_range(np.concatenate([average, _middle(train.values)]), low, high)
    if len(validation.steps):
        values = _finite(validation.values)
        axes.plot(validation.steps, values, color=canvas.ORANGE, linewidth=0.8, marker="o", ms=3.5)
        ends.append(("validation", validation.steps[-1], values[-1], canvas.ORANGE))
        low, high = _robust_range(values, low, high)
    _set_limits(axes, low, high)
    canvas.thousands(axes)
    if len({*train.steps, *validation.steps}) == 1:
        axes.set_xticks([*train.steps, *validation.steps][:1])
    _label_ends(axes, ends)
    if end_of_warmup is not None:
        _shade_warmup(axes, end_of_warmup)


def _trend(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth a measurement over a fortieth of the run; leave a schedule with its corners."""
    if is_smooth(values):
        return _finite(values)
    span = len(values) // 50
    return smooth(smooth(values, span), span)  # twice, so that a spike does not become a box


def thinned(points: Series, most: int) -> Series:
    """Keep the lowest and the highest value of each stretch, so that no spike is lost."""
    count = len(points.steps)
    if count <= most:
        return points
    edges = np.linspace(0, count, most // 2 + 1).astype(int)
    kept: list[int] = []
    filled = np.nan_to_num(points.values)
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        stretch = filled[start:stop]
        kept.extend(sorted({start + int(stretch.argmin()), start + int(stretch.argmax())}))
    return Series(points.steps[kept], points.values[kept])


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.nan)


def _middle(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The range of all but one value in a hundred, so that a spike cannot flatten a curve."""
    finite = values[np.isfinite(values)]
    return np.asarray(np.percentile(finite, [0.5, 99.5])) if len(finite) else finite


def _robust_range(values: NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return low, high
    return min(low, float(finite.min())), max(high, float(finite.max()))


def _set_limits(axes: Axes, low: float, high: float) -> None:
    if not np.isfinite(low):
        _say_nothing_there(axes, "no finite value")
        return
    margin = 0.06 * (high - low) or 0.5 * max(abs(high), 1e-3)
    axes.set_ylim(low - margin, high + margin)


def _say_nothing_there(axes: Axes, text: str = "not recorded in this run") -> None:
    label = axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    label.set(color=canvas.QUIET, fontsize=canvas.TEXT_SIZE)
    axes.set_xticks([])
    axes.set_yticks([])


def _label_ends(axes: Axes, ends: list[tuple[str, float, float, str]]) -> None:
    """Name each curve at its end, in its colour, with its last value; labels do not overlap."""
    low, high = axes.get_ylim()
    shown = sorted((end for end in ends if np.isfinite(end[2])), key=lambda end: end[2])
    heights = [float(np.clip((value - low) / (high - low), 0, 1)) for _, _, value, _ in shown]
    for above in range(1, len(heights)):
        lacking = 2 * _LABEL_GAP - (heights[above] - heights[above - 1])
        if lacking > 0:
            heights[above - 1] -= lacking / 2
            heights[above] += lacking / 2
    for (name, _, value, colour), height in zip(shown, heights, strict=True):
        words = f"{name}\n{format_number(value)}" if len(shown) > 1 else format_number(value)
        label = axes.text(1.015, height, words, va="center")
        label.set(transform=axes.transAxes, color=colour, fontsize=canvas.SMALL_SIZE)


def _shade_warmup(axes: Axes, end: float) -> None:
    left, right = axes.get_xlim()
    axes.axvspan(left, end, color=canvas.FAINT, alpha=0.45, linewidth=0, zorder=0)
    axes.set_xlim(left, right)
    label = axes.text(0, 1.02, "warm-up", va="bottom")
    label.set(transform=axes.transAxes, color=canvas.QUIET, fontsize=canvas.SMALL_SIZE)


def codebook_use(counts: ArrayLike, title: str = "Codebook use") -> bytes:
    """Draw how often each code is used, most used first, against a uniform codebook.

    Args:
        counts: (K,) how many patches got each code, over the whole set.
        title: Begins the title; perplexity and the share of codes used follow.
    """
    from matplotlib.ticker import FuncFormatter

    uses = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    assert uses.ndim == 1 and len(uses) and (uses >= 0).all(), "counts is a list of counts"
    total, size = uses.sum(), len(uses)
    used = int((uses > 0).sum())
    figure = canvas.new_figure(_WIDTH, 3.4)
    canvas.heading(figure, f"{title}: {_use_in_words(uses)}")
    axes = figure.subplots()
    canvas.quiet_axes(axes, x_label="codes, most used first", y_label="share of all patches")
    if total == 0:
        _say_nothing_there(axes, "no code was counted")
        return canvas.to_png(figure)
    shares, ranks = uses[:used] / total, np.arange(1, used + 1)
    axes.set_yscale("log")
    axes.axhline(1 / size, color=canvas.QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.fill_between(ranks, shares, shares.min() / 3, color=canvas.BLUE, alpha=0.12, linewidth=0)
    marker = "o" if used == 1 else None
    axes.plot(ranks, shares, color=canvas.BLUE, linewidth=1.8, marker=marker)
    axes.set_xlim(0, size * 1.005)
    axes.set_ylim(min(shares.min(), 1 / size) / 1.6, max(shares.max(), 1 / size) * 1.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    _annotate_use(axes, size, used)
    canvas.thousands(axes)
    return canvas.to_png(figure)


def _use_in_words(uses: NDArray[np.float64]) -> str:
    total, size = uses.sum(), len(uses)
    if total == 0:
        return "nothing counted"
    shares = uses[uses > 0] / total
    perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
    used = format_percent(len(shares) / size)
    return (
        f"perplexity {perplexity:,.1f} of {size:,} ({format_percent(perplexity / size)}), "
        f"{len(shares):,} codes used ({used})"
    )


def _annotate_use(axes: Axes, size: int, used: int) -> None:
    style: dict[str, Any] = {"color": canvas.QUIET, "fontsize": canvas.SMALL_SIZE}
    label = axes.text(1.008, 1 / size, f"uniform\n1/{size:,}", va="center", **style)
    label.set_transform(axes.get_yaxis_transform())
    if used < size:
        axes.axvspan(used, size, color=canvas.ORANGE, alpha=0.08, linewidth=0)
        never = axes.text(size, 1.02, f"never used: {size - used:,}", ha="right", va="bottom")
        never.set(color=canvas.ORANGE, fontsize=canvas.SMALL_SIZE)
        never.set_transform(axes.get_xaxis_transform())


def bars(
    groups: Sequence[str],
    methods: Sequence[str],
    means: ArrayLike,
    deviations: ArrayLike | None = None,
    *,
    title: str = "",
    axis: str = "",
    emphasis: str = "",
) -> bytes:
    """Draw means with their spread: a group of bars for each group, one bar a method.

    Args:
        groups: G names along the bottom, such as the number of labels a class.
        methods: M names of the bars.
        means: (G, M) heights; NaN leaves a bar out.
        deviations: (G, M) standard deviations, drawn as whiskers.
        title: The title of the figure.
        axis: What the height is, with its unit.
        emphasis: The method drawn in colour; the others are grey.
    """
    heights = np.asarray(means, dtype=np.float64)
    assert heights.shape == (len(groups), len(methods)), "means are (groups, methods)"
    given = np.zeros_like(heights) if deviations is None else deviations
    whiskers = np.asarray(np.nan_to_num(given), dtype=np.float64)
    figure = canvas.new_figure(_WIDTH, 3.8)
    canvas.heading(figure, title)
    axes = figure.subplots()
    canvas.quiet_axes(axes, y_label=axis)
    colours = _bar_colours(methods, emphasis)
    width = 0.8 / max(1, len(methods))
    for place in range(len(methods)):
        at = np.arange(len(groups)) + (place - (len(methods) - 1) / 2) * width
        style: dict[str, Any] = {
            "elinewidth": 1,
            "ecolor": canvas.INK,
            "capsize": 2.5,
            "capthick": 1,
        }
        axes.bar(at, heights[:, place], 0.92 * width, color=colours[place], label=str(place))
        if deviations is not None:
            axes.errorbar(at, heights[:, place], whiskers[:, place], fmt="none", **style)
        _label_bars(axes, at, heights[:, place], whiskers[:, place])
    axes.set_xticks(range(len(groups)), [canvas.drawable(group) for group in groups])
    axes.tick_params(axis="x", colors=canvas.INK, labelsize=canvas.TEXT_SIZE)
    for text in axes.get_xticklabels():
        canvas.plain(text)
    _legend_above(axes, methods)
    return canvas.to_png(figure)


def _bar_colours(methods: Sequence[str], emphasis: str) -> list[str]:
    greys = (canvas.GREYS[place % len(canvas.GREYS)] for place in range(len(methods)))
    return [canvas.BLUE if method == emphasis else next(greys) for method in methods]


def _label_bars(axes: Axes, at: Heights, tops: Heights, whiskers: Heights) -> None:
    for x, top, whisker in zip(at, tops, whiskers, strict=True):
        if np.isfinite(top):
            above = (x, max(top + whisker, 0))
            style: dict[str, Any] = {"color": canvas.INK, "fontsize": canvas.SMALL_SIZE}
            place: dict[str, Any] = {"textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{top:.1f}", above, xytext=(0, 3), **place, **style)


def _legend_above(axes: Axes, methods: Sequence[str]) -> None:
    where = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.3}
    legend = axes.legend(
        ncols=min(len(methods), 5),
        frameon=False,
        fontsize=canvas.SMALL_SIZE,
        handlelength=1,
        **where,
    )
    for text, method in zip(legend.get_texts(), methods, strict=True):
        text.set_text(method)  # not as a label: those that begin with _ would be left out
        canvas.plain(text)
