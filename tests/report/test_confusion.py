"""The confusion is drawn the right way round, for two classes and for a thousand."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from beit.report import canvas, confusion
from beit.report.confusion import confusion_figure

BLUE, ORANGE, FAINT = (confusion._rgb(c) for c in (canvas.BLUE, canvas.ORANGE, canvas.FAINT))


def _random(classes: int) -> NDArray[np.int64]:
    chance = np.random.default_rng(0)
    return np.asarray(chance.poisson(0.05, (classes, classes)) + 9 * np.eye(classes), np.int64)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_any_number_of_classes_gives_a_page_of_the_same_width(classes: int) -> None:
    names = [f"class number {place}" for place in range(classes)]
    png = confusion_figure(_random(classes), names)
    page = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert page.shape[1] == 11 * canvas.DPI and page.shape[0] <= 6.5 * canvas.DPI
    assert (page < 250).any(2).mean() > 0.01


def test_the_same_counts_give_the_same_bytes() -> None:
    assert confusion_figure(_random(5), list("abcde")) == confusion_figure(_random(5), "abcde")


def test_squares_hold_the_truth_in_rows() -> None:
    pixels = confusion._squares(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), 1)
    assert np.allclose(pixels[0, 0], 1 - 0.75 * (1 - BLUE))
    assert np.allclose(pixels[0, 1], 1 - 0.5 * (1 - ORANGE))  # the root of a quarter
    assert np.allclose(pixels[1, 1], BLUE)
    assert (pixels[1, 0] == 1).all() and (pixels[1, 2] == 1).all()
    assert np.allclose(pixels[2], FAINT)  # nothing was there to be named


def test_no_mistake_is_lost_when_squares_stand_for_several_classes() -> None:
    counts = np.eye(1000, dtype=np.int64)
    counts[7, 7], counts[7, 993] = 0, 1
    pixels = confusion._squares(counts, 4)
    assert pixels.shape == (250, 250, 3)
    assert np.allclose(pixels[1, 248], ORANGE)
    assert np.allclose(pixels[1, 1], 1 - 0.75 * (1 - BLUE))
    assert np.argwhere((pixels != 1).any(2)).tolist() == sorted(
        [[place, place] for place in range(250)] + [[1, 248]]
    )


def test_a_number_of_classes_that_does_not_divide() -> None:
    pixels = confusion._squares(np.eye(251, dtype=np.int64), 2)
    assert pixels.shape == (126, 126, 3)
    assert np.allclose(pixels[np.arange(126), np.arange(126)], BLUE)


def test_lists_name_mistakes_and_the_hardest_classes() -> None:
    counts = np.array([[50, 0, 3], [1, 1, 8], [0, 0, 0]])
    assert confusion._mistakes(counts, ["ant", "bee", "cow"]) == [
        ("bee as cow", "8 of 10"),
        ("ant as cow", "3 of 53"),
        ("bee as ant", "1 of 10"),
    ]
    assert confusion._hardest(counts, ["ant", "bee", "cow"]) == [
        ("bee", "10.0 % of 10"),
        ("ant", "94.3 % of 53"),
    ]


@pytest.mark.parametrize(
    "names", [["$x$", "_b"], ["", "\n\u202e"], ["\udcff" * 90, "名前"], ["a" * 300, "b"]]
)
def test_hostile_names_and_empty_counts_are_drawn(names: list[str]) -> None:
    assert confusion_figure(np.zeros((2, 2)), names, title="$").startswith(b"\x89PNG")
