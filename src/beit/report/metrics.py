"""Read `metrics.jsonl` and prepare its columns for a chart."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.errors import UserError

Row = dict[str, Any]  # one JSON object of metrics.jsonl


class Series(NamedTuple):
    """One metric over the run."""

    steps: NDArray[np.float64]  # (n,) in increasing order
    values: NDArray[np.float64]  # (n,) may hold NaN and infinities


def read_metrics(path: Path) -> list[Row]:
    """Read a run's metrics, one row a line.

    The last line may be torn by a crash in the middle of writing: it is then left out. Damage
    anywhere else is the user's to know.

    Raises:
        UserError: The file is missing, or a line before the last one is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}); is this a run folder?") from None
    rows: list[Row] = []
    last = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    for number, line in enumerate(lines[: last + 1]):
        if not line.strip():
            continue
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif number != last:
            raise UserError(
                f"Line {number + 1} of {path} is not a JSON object; remove the line to go on."
            )
    return rows


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:  # bad JSON and bad UTF-8 alike
        return None
    return row if isinstance(row, dict) else None


def series(rows: Iterable[Row], key: str, split: str = "train") -> Series:
    """Pick one metric of one split, sorted by step; rows without the number are left out."""
    points = sorted(
        (float(row["step"]), float(row[key]))
        for row in rows
        if row.get("split", "train") == split and _is_number(row.get(key)) and "step" in row
    )
    steps, values = zip(*points, strict=True) if points else ((), ())
    return Series(np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def smooth(values: Sequence[float] | NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """Centred moving average: it does not lag behind a falling curve as a one-sided one does.

    Args:
        values: (n,) raw values; those that are not finite are left out of the averages.
        span: How many values an average takes in; 1 or less changes nothing. At the start, where
            curves are steep, the window shrinks on both sides; at the end, where the value is read
            off, only what lies beyond is missing.

    Returns:
        (n,) averages; NaN where a window holds no finite value.
    """
    raw = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(raw)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, raw, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(raw))
    reach = np.minimum(max(span, 1) // 2, places)
    start, stop = places - reach, np.minimum(places + reach + 1, len(raw))
    held = counts[stop] - counts[start]
    return np.where(held > 0, (sums[stop] - sums[start]) / np.maximum(held, 1), np.nan)


def is_smooth(values: NDArray[np.float64]) -> bool:
    """Whether a curve is a schedule and not a measurement: it hardly turns."""
    finite = values[np.isfinite(values)]
    if len(finite) < 3:
        return True
    return bool(np.abs(np.diff(finite)).sum() <= 3 * (finite.max() - finite.min()))


def warmup_end(rows: Iterable[Row]) -> float | None:
    """The step at which the learning rate first peaks; None when it does not rise before that."""
    steps, rates = series(rows, "lr")
    finite = rates[np.isfinite(rates)]
    if len(finite) < 2 or len(finite) < len(rates):
        return None
    peak = int(np.argmax(rates))
    return float(steps[peak]) if 0 < peak < len(rates) - 1 else None


def latest(rows: Iterable[Row], key: str, split: str = "train") -> float | None:
    """The last value of a metric, or None when it was never recorded."""
    values = series(rows, key, split).values
    return float(values[-1]) if len(values) else None
