"""Masks survive as numbers in a PNG and as colours a person can tell apart."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from beit.report import canvas
from beit.report.overlays import (
    class_colours,
    coloured,
    index_png,
    legend,
    overlay,
    overlay_page,
)

Pixels = NDArray[np.uint8]
PALETTE = ((255, 0, 0), (0, 200, 0), (0, 0, 255))
NAMES = ("sky", "road", "car")


def _pair(height: int = 40, width: int = 60) -> tuple[Pixels, Pixels]:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 2 :] = 1
    mask[height // 4 : height // 2, : width // 3] = 2
    mask[-3:, -3:] = 255
    return image, mask


def _read(png: bytes) -> Pixels:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def _has(page: Pixels, colour: tuple[int, ...] | str) -> bool:
    if isinstance(colour, str):
        colour = tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return bool((np.abs(page.astype(int) - colour).max(axis=2) <= 1).any())


@pytest.mark.parametrize("palette", [PALETTE, None, [list(colour) for colour in PALETTE]])
def test_an_index_png_holds_the_numbers_and_shows_the_colours(palette: object) -> None:
    from beit.data.decoding.decode import decode_classes

    _, mask = _pair()
    png = index_png(mask, palette)  # type: ignore[arg-type]
    assert np.array_equal(decode_classes(png), mask)
    shown = _read(png)
    expected = class_colours(3, palette)  # type: ignore[arg-type]
    for number in range(3):
        assert (shown[mask == number] == expected[number]).all()
    assert (shown[mask == 255] == 0).all()


def test_all_numbers_come_back_from_an_index_png() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for palette in (None, PALETTE):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(index_png(mask, palette)))), mask)


def test_the_picture_shows_through_its_colours() -> None:
    image, mask = _pair()
    image[:] = 0
    image[:, 30:] = 255
    shown = coloured(image, mask, PALETTE)
    inside = shown[25:35]  # of class 1, with a border above only
    assert (inside[..., 1] > inside[..., 0]).all() and (inside[..., 1] > inside[..., 2]).all()
    assert int(inside[0, 40, 0]) - int(inside[0, 10, 0]) > 50, "light beside dark"
    assert (shown[19, 25] == PALETTE[0]).all(), "borders have the colour alone"
    assert (shown[-1, -1] == 0).all()


def test_an_overlay_names_the_classes_that_are_there() -> None:
    image, mask = _pair(400, 600)
    page = np.asarray(overlay(image, mask, PALETTE, NAMES))
    assert page.shape[1] == 600 and page.shape[0] > 400
    assert np.array_equal(page[:400], coloured(image, mask, PALETTE))
    strip = page[400:]
    assert all(_has(strip, colour) for colour in (*PALETTE, (0, 0, 0), canvas.INK))
    without = np.asarray(overlay(image, np.minimum(mask, 1), PALETTE, NAMES))
    assert not _has(without[400:], PALETTE[2]), "nothing is named that is not there"


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (64, 64), (3, 9000)], ids=str)
def test_an_overlay_of_any_size_has_room_for_its_legend(size: tuple[int, int]) -> None:
    image, mask = _pair(*size)
    page = overlay(image, mask, None, NAMES)
    assert page.width >= 480 and page.height <= 4_200
    assert ((np.asarray(page) == 255).all(2)).any(), "paper under the legend"


def test_names_may_be_anything() -> None:
    names = ["<img onerror=x>", "$x_{$", "猫" * 50, "a\nb\x1b[31m"]
    strip = legend(names, [(1, 2, 3)] * 4, 300, 14)
    assert strip.shape[1] == 300 and _has(strip, (1, 2, 3)) and _has(strip, canvas.INK)
    assert legend([], [], 100, 14).shape[1] == 100


def test_a_page_shows_picture_truth_and_prediction() -> None:
    image, truth = _pair(120, 160)
    wrong = np.where(truth == 0, 2, truth).astype(np.uint8)
    rows = [(image, truth, truth), (image, truth, wrong)]
    page = _read(overlay_page(rows, PALETTE, NAMES, "Validation $x$ 猫", ["a.jpg", "<b>"]))
    assert all(_has(page, colour) for colour in PALETTE)
    cell = 160 * (738 // 160)
    assert page.shape[1] == 3 * cell + 16
    assert page.shape[0] > 2 * 120 * (738 // 160)
    same = _read(overlay_page(rows, PALETTE, NAMES, "Validation $x$ 猫", ["a.jpg", "<b>"]))
    assert np.array_equal(page, same)
    other = _read(overlay_page([rows[0], rows[0]], PALETTE, NAMES, "Validation $x$ 猫", ["a.jpg"]))
    assert other.shape == page.shape and not np.array_equal(other, page)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (900, 1400)], ids=str)
def test_a_page_takes_any_size(size: tuple[int, int]) -> None:
    image, truth = _pair(*size)
    page = _read(overlay_page([(image, truth, truth * 0 + 255)], None, NAMES))
    assert 400 <= page.shape[1] <= 2240 and page.shape[0] <= 1500


def test_colours_of_ones_own_are_told_apart() -> None:
    colours = np.array(class_colours(255), dtype=int)
    assert len({tuple(colour) for colour in colours.tolist()}) == 255
    few = colours[:20]
    apart = np.abs(few[:, None] - few).sum(-1) + 999 * np.eye(20, dtype=int)
    assert apart.min() >= 60
    ends = np.minimum(few.sum(-1), 765 - few.sum(-1))
    assert ends.min() >= 90, "neither nearly black, which means not counted, nor nearly white"
    with pytest.raises(AssertionError, match="a colour a class"):
        class_colours(4, PALETTE)
