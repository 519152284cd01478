"""The curve over depth decodes, is the same every time, and keeps its labels apart."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from beit.report import canvas, depth
from beit.report.depth import DepthCurve, depth_figure

VALUES = [0.3, 0.4, 0.5, 0.45]


def _decode(png: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def _pixels(page: NDArray[np.uint8], colour: str) -> int:
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return int((np.abs(page.astype(int) - wanted).max(axis=2) <= 2).sum())


def test_each_method_has_its_colour_and_the_chosen_block_is_large() -> None:
    both = [DepthCurve("quick", VALUES, 2), DepthCurve("paper", [0.2, 0.3, 0.3, 0.2])]
    page = _decode(depth_figure(both, "A title", floor=0.1))
    assert _pixels(page, canvas.BLUE) and _pixels(page, canvas.ORANGE)
    unmarked = _decode(depth_figure([DepthCurve("quick", VALUES)]))
    marked = _decode(depth_figure([DepthCurve("quick", VALUES, 2)]))
    halo = "#bed0e5"  # the same blue, mostly transparent
    assert _pixels(marked, halo) > 100 > _pixels(unmarked, halo)


@pytest.mark.parametrize("values", [[0.3], [0.5, 0.5], [0.0, 1.0], [0.1] * 48])
def test_any_depth_is_drawn_and_the_same_input_gives_the_same_bytes(values: list[float]) -> None:
    curves = [DepthCurve("$weird <name>\n", values, len(values) - 1)]
    first = depth_figure(curves, floor=0.1)
    assert depth_figure(curves, floor=0.1) == first
    assert (_decode(first) < 250).any(axis=2).mean() > 0.002


def test_a_floor_above_every_curve_is_inside_the_axes() -> None:
    """It is where models learn less than how often the most frequent class occurs."""
    page = _decode(depth_figure([DepthCurve("quick", [0.2, 0.2])], floor=0.5))
    assert _pixels(page[:, 200:1400], canvas.QUIET) > 1000  # of the dashed line


def test_labels_lie_apart_and_in_their_order() -> None:
    moved = depth._apart([0.5, 0.5, 0.51, 0.9], 0.06)
    assert np.diff(moved).min() >= 0.06 - 1e-6 and moved[3] == 0.9
    assert depth._apart([0.1, 0.5], 0.06) == [0.1, 0.5]
