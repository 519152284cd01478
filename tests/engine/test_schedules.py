import math

import pytest

from beit.engine.schedules import SCHEDULES, warmup_constant, warmup_cosine, warmup_linear


def oracle(total: int, warmup: int, peak: float, minimum: float) -> list[float]:
    """The whole table at once, written as the recipe says it."""
    rates = [peak * i / warmup for i in range(warmup)]
    length = total - warmup
    return rates + [
        minimum + (peak - minimum) / 2 * (1 + math.cos(math.pi * i / length)) for i in range(length)
    ]


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (7, 0), (5, 4), (1, 0)])
def test_equals_the_table(total: int, warmup: int) -> None:
    expected = oracle(total, warmup, 1.5e-3, 1e-5)
    ours = [
        warmup_cosine(step, total_steps=total, warmup_steps=warmup, peak=1.5e-3, minimum=1e-5)
        for step in range(total)
    ]
    assert ours == pytest.approx(expected, rel=1e-12)


def test_corners() -> None:
    def rate(step: int, warmup: int = 10) -> float:
        return warmup_cosine(step, total_steps=110, warmup_steps=warmup, peak=2.0, minimum=0.5)

    assert rate(0) == 0 and rate(5) == 1.0 and rate(10) == 2.0
    assert rate(60) == pytest.approx(1.25)  # half-way down
    assert rate(110) == rate(10_000) == 0.5
    assert rate(109, warmup=200) == pytest.approx(2.0 * 109 / 200)  # a warm-up longer than the run
    assert rate(200, warmup=200) == 0.5


def test_the_straight_line() -> None:
    rates = [
        warmup_linear(step, total_steps=12, warmup_steps=2, peak=1.0, minimum=0.5)
        for step in range(13)
    ]
    assert rates[:2] == [0.0, 0.5]
    assert rates[2:] == pytest.approx([1.0 - 0.05 * i for i in range(11)])
    flat = [
        warmup_constant(step, total_steps=12, warmup_steps=2, peak=1.0, minimum=0.5)
        for step in (0, 1, 2, 12, 99)
    ]
    assert flat == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert SCHEDULES["linear"] is warmup_linear and SCHEDULES["cosine"] is warmup_cosine
