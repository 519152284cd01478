"""Sizes and time spans as a person reads them, numbers as every program does."""

import json
import math

import pytest

from beit.files import human_bytes, human_time, json_of_measured


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (12, "12 s"),
        (59.7, "1 min"),
        (185, "3 min 5 s"),
        (7_810, "2 h 10 min"),
        (90_000, "1 d 1 h"),
        (3_605, "1 h"),
        (math.inf, "unknown"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(12, "12 bytes"), (1500, "1.5 kB"), (3_200_000_000, "3.2 GB"), (4 * 10**12, "4.0 TB")],
)
def test_sizes(size: int, text: str) -> None:
    assert human_bytes(size) == text


def test_measured_numbers_are_json() -> None:
    measured = {"a": [math.nan, 1.5, (math.inf, "NaN")], "b": {"c": -math.inf, "d": None}, "e": 2}
    assert json.loads(json_of_measured(measured), parse_constant=pytest.fail) == {
        "a": [None, 1.5, [None, "NaN"]],
        "b": {"c": None, "d": None},
        "e": 2,
    }
