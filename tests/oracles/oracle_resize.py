"""Slow, obvious re-derivations for tests of resized positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def slow_places(old: int, new: int) -> list[float]:
    """Add up steps that grow by a factor, of 1.5 at most; creep towards it digit by digit."""

    def reach(factor: float) -> float:
        total, step = 0.0, 1.0
        for _ in range(old):
            total, step = total + step, step * factor
        return total

    factor = 1.0
    for digit in range(15):
        while old > 1 and reach(factor + 10.0**-digit) <= new and factor + 10.0**-digit <= 1.5:
            factor += 10.0**-digit
    side, step = [0.0], 1.0
    for _ in range(old):
        side.append(side[-1] + step)
        step *= factor
    return [-place for place in side[:0:-1]] + side


def slow_cubic(places: list[float], values: Floats, wanted: float) -> float:
    """The not-a-knot cubic through all points, in truncated powers; a parabola through three.

    A cubic on either side of each knot whose first two derivatives go through: 1, x, x^2, x^3 and
    (x - knot)^3 above the knot, for every place but the two outermost on either side.
    """
    degree = min(3, len(places) - 1)
    knots = places[2:-2] if degree == 3 else []

    def basis(x: float) -> list[float]:
        return [x**power for power in range(degree + 1)] + [max(0.0, x - k) ** 3 for k in knots]

    weights = np.linalg.solve(np.array([basis(place) for place in places]), values)
    return float(np.array(basis(wanted)) @ weights)


def slow_resized_axis(values: Floats, new: int) -> Floats:
    """One axis, (2n+1,) to (2m+1,): cut when it shrinks, else interpolate at whole offsets."""
    old = len(values) // 2
    if new <= old:
        return values[old - new : old + new + 1]
    if old == 0:
        return np.repeat(values, 2 * new + 1)
    places = slow_places(old, new)
    offsets = [min(max(float(offset), places[0]), places[-1]) for offset in range(-new, new + 1)]
    return np.array([slow_cubic(places, values, offset) for offset in offsets])


def slow_resized_table(
    table: Floats, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Floats:
    """One head at a time, first all rows, then all columns."""
    (old_height, old_width), (new_height, new_width) = old_grid, new_grid
    heads = []
    for head in range(table.shape[1]):
        entries = table[:-3, head].reshape(2 * old_height - 1, 2 * old_width - 1)
        rows = np.array([slow_resized_axis(row, new_width - 1) for row in entries])
        both = np.array([slow_resized_axis(column, new_height - 1) for column in rows.T]).T
        heads.append(np.concatenate((both.ravel(), table[-3:, head])))
    return np.stack(heads, axis=1)
