"""Figures decode, have the size they should, carry ink, and survive what runs throw at them."""

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from beit.report import canvas, figures, pictures
from beit.report.metrics import Series


def decode(png: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def ink(page: NDArray[np.uint8]) -> float:
    """The share of pixels that are not paper."""
    return float((page < 250).any(axis=2).mean())


def has_colour(page: NDArray[np.uint8], colour: str) -> bool:
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return bool((np.abs(page.astype(int) - wanted).max(axis=2) <= 2).any())


def _rows(steps: int = 120) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 4 + 2 * math.exp(-step / 30) + 0.1 * generator.normal()
        rate = min(step / 20, 1.0)
        rate = rate if step <= 20 else 1 - step / steps
        rows.append({"step": step, "split": "train", "loss": loss, "lr": rate})
        if step % 30 == 0:
            rows.append({"step": step, "split": "val", "loss": loss + 0.1})
    return rows


def test_curves_show_train_validation_and_warmup() -> None:
    page = decode(figures.curves(_rows(), ["loss", "lr", "nothing"], "Pre-training"))
    assert page.shape[1] == 11 * canvas.DPI
    assert ink(page) > 0.005
    assert has_colour(page, canvas.BLUE) and has_colour(page, canvas.ORANGE)
    without = decode(figures.curves([r for r in _rows() if r["split"] == "train"], ["loss"]))
    assert not has_colour(without, canvas.ORANGE)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": 2.0, "lr": 0.1}],
        [{"step": 1, "split": "val", "loss": 2.0}],
        [{"step": s, "loss": math.nan} for s in range(5)],
        [{"step": s, "loss": math.inf if s == 3 else 1.0, "lr": 0.1} for s in range(9)],
        [{"step": s, "loss": 0.0, "lr": math.nan} for s in range(3)],
    ],
    ids=["none", "one", "validation only", "NaN", "infinity", "constant"],
)
def test_curves_survive_any_run(rows: list[dict[str, Any]]) -> None:
    assert ink(decode(figures.curves(rows, ["loss", "lr"]))) > 0.0005


def test_the_warmup_is_shaded_until_the_rate_peaks() -> None:
    page = decode(figures.curves(_rows(), ["loss"]))
    left, right = page[100:450, 150:320], page[100:450, 1200:1900]
    assert np.median(left) < 250, "most of the panel's left is shaded"
    assert np.median(right) == 255
    constant = [{**row, "lr": 1.0} for row in _rows()]
    assert np.median(decode(figures.curves(constant, ["loss"]))[100:450, 150:320]) == 255


def test_thinning_keeps_the_spike_and_the_order() -> None:
    values = np.zeros(10_000)
    values[7_777], values[3_333] = 50.0, -50.0
    thin = figures.thinned(Series(np.arange(10_000, dtype=np.float64), values), 200)
    assert len(thin.steps) <= 200
    assert thin.values.max() == 50 and thin.values.min() == -50
    assert (np.diff(thin.steps) > 0).all()


@pytest.mark.parametrize("counts", [[0] * 8, [0, 9, 0, 0], [1], list(range(64)), [5] * 16], ids=str)
def test_codebook_use_survives_any_counts(counts: Sequence[int]) -> None:
    page = decode(figures.codebook_use(counts))
    assert ink(page) > 0.002
    assert has_colour(page, canvas.BLUE) == (sum(counts) > 0)


def test_codebook_use_tells_perplexity_and_share() -> None:
    words = figures._use_in_words(np.array([10.0, 10.0, 0.0, 0.0]))
    assert words == "perplexity 2.0 of 4 (50.0 %), 2 codes used (50.0 %)"


def test_bars_draw_means_spreads_and_strange_names() -> None:
    page = decode(
        figures.bars(
            ["2", "<b>$x_{$</b>", "猫"],
            ["scratch", "_hidden", "ours $\\frac{$"],
            [[1.0, 2.0, 3.0], [4.0, 5.0, math.nan], [7.0, 8.0, 9.0]],
            [[0.1, 0.1, 0.1], [0.2, 0.2, math.nan], [0.0, 0.0, 0.0]],
            title="Accuracy $x_{$ 猫",
            axis="accuracy, %",
            emphasis="ours $\\frac{$",
        )
    )
    assert has_colour(page, canvas.BLUE) and has_colour(page, canvas.GREYS[0])
    assert ink(page) > 0.05
    assert ink(decode(figures.bars(["a"], ["b"], [[1.0]]))) > 0.05


def test_the_legend_names_every_method() -> None:
    pages = [decode(figures.bars(["a"], ["b", name], [[1.0, 1.0]])) for name in ("_m", "m_")]
    legends = [ink(page[:70]) for page in pages]
    assert legends[0] == pytest.approx(legends[1], rel=0.05)


def test_the_same_input_gives_the_same_bytes_from_any_thread() -> None:
    rows = _rows(20)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: figures.curves(rows, ["loss"], "one"), range(4)))
    assert len(set(drawn)) == 1


def _pictures(count: int, height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    generator = np.random.default_rng(1)
    return generator.integers(0, 255, (count, height, width, 3), dtype=np.uint8)


def test_small_pictures_are_enlarged_pixel_for_pixel() -> None:
    picture = _pictures(1)[0]
    page = decode(pictures.sheet([pictures.SheetRow([picture])]))
    factor = 320 // 8
    assert page.shape[:2] == (8 * factor + 8, 8 * factor)
    shown = page[: 8 * factor, : 8 * factor]
    np.testing.assert_array_equal(shown[::factor, ::factor], picture)
    np.testing.assert_array_equal(shown[factor - 1 :: factor, factor - 1 :: factor], picture)


def test_large_pictures_are_brought_to_the_cell() -> None:
    assert pictures.fit(_pictures(1, 300, 600)[0], 200).shape == (100, 200, 3)
    assert pictures.fit(_pictures(1, 3, 7)[0], 200).shape == (84, 196, 3)


def test_reconstructions_stand_below_their_originals() -> None:
    originals = _pictures(8)
    page = decode(pictures.reconstruction_page(originals, originals / 255, "Reconstructions"))
    assert page.shape[1] <= pictures.PAGE_WIDTH
    cell = 320
    top = page[56 : 56 + cell, 44 : 44 + cell]
    below = page[56 + cell + 8 : 56 + 2 * cell + 8, 44 : 44 + cell]
    np.testing.assert_array_equal(top, below)
    np.testing.assert_array_equal(top[::40, ::40], originals[0])


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_masked_pages_hold_every_picture(count: int) -> None:
    originals = _pictures(count, 16, 8)
    masks = np.zeros((count, 4, 2), dtype=bool)
    masks[:, 1] = True
    masked = pictures.paint_masks(originals, masks)
    page = decode(pictures.masked_page(originals, masked, masked, originals / 255.0, "Filled in"))
    assert page.shape[1] <= pictures.PAGE_WIDTH
    across, down = (8, -(-count // 2)) if count >= 4 else (4, count)
    assert ink(page) > 0.5 * (count * 4) / (across * down)


def test_masks_are_painted_where_they_are() -> None:
    originals = _pictures(2, 8, 12)
    masks = np.zeros((2, 2, 3), dtype=bool)
    masks[0, 1, 2] = True
    painted = pictures.paint_masks(originals, masks)
    assert (painted[0, 4:, 8:] == 128).all()
    changed = (painted != originals).any(axis=-1)
    assert not changed[1].any() and not changed[0, :4].any() and not changed[0, :, :8].any()


def test_attention_is_bright_where_the_map_is() -> None:
    originals = np.zeros((1, 8, 8, 3), np.uint8)
    maps = np.zeros((1, 2, 2, 2))
    maps[0, :, 0, 1] = 1
    page = decode(pictures.attention_page(originals, maps, queries=np.array([[1, 0]])))
    cell = pictures.fit(originals[0], 268).shape[0]
    assert page[10 : cell - 10].max() > 150
    left = pictures._columns(4, 0, 0)[0][1]
    mean = page[:cell, left : left + cell]
    assert mean[10, -10].sum() > 3 * mean[-10, 10].sum()
    framed = page[:cell, :cell]
    red = (framed[..., 0] == 255) & (framed[..., 1] == 64)
    assert red[cell // 2 :, : cell // 2].any() and not red[: cell // 2].any()


def test_attention_pages_wrap_many_heads() -> None:
    page = decode(
        pictures.attention_page(_pictures(2), np.random.default_rng(0).random((2, 12, 4, 4)))
    )
    assert page.shape[1] <= pictures.PAGE_WIDTH
    assert ink(page) > 0.4


def test_a_long_title_of_a_small_page_is_not_cut() -> None:
    narrow = decode(pictures.sheet([pictures.SheetRow([_pictures(1)[0]])], "a title " * 6))
    assert ink(narrow[:50, 320:]) > 0.01
    assert ink(narrow[:50, -4:]) == 0


def test_a_caption_may_have_two_lines() -> None:
    """The second one has room of its own, and is written there."""
    picture = _pictures(1)[0]
    one, two = (
        decode(pictures.sheet([pictures.SheetRow([picture], captions=[caption])]))
        for caption in ("a name", "a name\nanother")
    )
    added = two[one.shape[0] :]
    assert two.shape[1] == one.shape[1] and len(added) > 20
    assert (added < 200).any()


def test_values_outside_are_clipped() -> None:
    odd = np.array([[[[-1.0, 2.0, math.nan]]]])
    assert pictures.to_bytes(odd).flatten().tolist() == [0, 255, 0]
