"""Metrics are read whatever a crash left behind, and charts do not lie about them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from beit.errors import UserError
from beit.report.metrics import is_smooth, latest, read_metrics, series, smooth, warmup_end

ROWS = [
    {"step": 1, "split": "train", "loss": 3.0, "lr": 0.5},
    {"step": 2, "split": "train", "loss": 2.0, "lr": 1.0},
    {"step": 2, "split": "val", "loss": 2.5},
    {"step": 3, "split": "train", "loss": 1.0, "lr": 0.2},
]


def _written(path: Path, tail: bytes = b"") -> Path:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS) + tail)
    return path


@pytest.mark.parametrize(
    "tail", [b"", b'{"step": 4, "lo', b"\n\n", b'{"step": 4, "n": "\xff', b"[1, 2]\n", b"\x00" * 9]
)
def test_a_torn_last_line_is_left_out(tmp_path: Path, tail: bytes) -> None:
    assert read_metrics(_written(tmp_path / "metrics.jsonl", tail)) == ROWS


def test_a_whole_last_line_without_newline_counts(tmp_path: Path) -> None:
    path = _written(tmp_path / "metrics.jsonl", b'{"step": 4, "loss": NaN}')
    assert len(read_metrics(path)) == 5


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_damage_before_the_end_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="Line 2"):
        read_metrics(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run folder"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_series_pick_a_split_in_order_and_only_numbers() -> None:
    odd: list[dict[str, Any]] = [
        {"step": 0, "loss": "high"},
        {"step": 9, "loss": True},
        {"loss": 1.0},
        {"step": 5},
    ]
    found = series([*reversed(ROWS), *odd], "loss")
    assert found.steps.tolist() == [1, 2, 3]
    assert found.values.tolist() == [3, 2, 1]
    assert series(ROWS, "loss", "val").values.tolist() == [2.5]
    assert len(series(ROWS, "nothing").steps) == 0
    assert latest(ROWS, "loss") == 1.0
    assert latest(ROWS, "nothing") is None


def test_smoothing_equals_the_slow_version() -> None:
    values: NDArray[np.float64] = np.random.default_rng(0).standard_normal(40)
    values[[3, 17]] = np.nan, np.inf
    for span in (1, 4, 9, 100):
        slow: list[float] = []
        for place in range(40):
            reach = min(span // 2, place)
            window = values[place - reach : place + reach + 1]
            finite = window[np.isfinite(window)]
            slow.append(float(finite.mean()) if len(finite) else math.nan)
        np.testing.assert_allclose(smooth(values, span), slow, atol=1e-12)


def test_smoothing_keeps_a_straight_line_and_does_not_lag() -> None:
    line: NDArray[np.float64] = np.linspace(5, 1, 101).astype(np.float64)
    np.testing.assert_allclose(smooth(line, 11)[:96], line[:96], atol=1e-12)
    assert smooth([], 5).shape == (0,)
    assert np.isnan(smooth([np.nan, np.nan], 5)).all()


def test_schedules_are_told_from_measurements() -> None:
    steps = np.arange(200)
    cosine = np.minimum(steps / 20, 1) * np.cos(steps / 200)
    assert is_smooth(cosine)
    assert not is_smooth(cosine + np.random.default_rng(0).normal(size=200) * 0.1)


def test_warmup_ends_where_the_rate_peaks() -> None:
    assert warmup_end(ROWS) == 2
    assert warmup_end(ROWS[1:]) is None, "a rate that only falls had no warm-up"
    assert warmup_end(ROWS[:2]) is None, "a rate that still rises has not peaked"
    assert warmup_end([]) is None
    assert warmup_end([{"step": s, "lr": 1.0} for s in range(5)]) is None
