"""Pages of pictures as PNG bytes: reconstructions, masked pictures, attention.

Small pictures are enlarged by whole factors without smoothing, so that 64 px can be judged.
Pictures are (B, H, W, 3) arrays, uint8 or floats in [0, 1].
Legend: B pictures, (H, W) pixels, (h, w) patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.report import canvas

Pixels = NDArray[np.uint8]  # (H, W, 3)
Array = NDArray[Any]

PAGE_WIDTH = 2240  # pixels, at canvas.DENSITY of them for each pixel of the page
_LARGEST_CELL = 320
_GAP, _GROUP_GAP, _TITLE_BAND, _TEXT_BAND, _GUTTER = 8, 40, 56, 36, 44
_GREY = 128  # of a masked patch


@dataclass(frozen=True)
class SheetRow:
    """One row of pictures, with what is written around it."""

    pictures: Sequence[Array]
    title: str = ""  # at the left, upright
    captions: Sequence[str] = ()  # below each picture, in lines
    ends_band: bool = False  # leave more room below


def reconstruction_page(
    originals: Array, reconstructions: Array, title: str = "", columns: int = 6
) -> bytes:
    """Put each original above its reconstruction, with the mean squared error in [0, 1] below."""
    assert originals.shape == reconstructions.shape, "one reconstruction an original"
    ours, theirs = to_floats(originals), to_floats(reconstructions)
    errors = ((ours - theirs) ** 2).mean(axis=(1, 2, 3))
    rows = []
    for start in range(0, len(originals), columns):
        part = slice(start, start + columns)
        captions = [f"mse {error:.4f}" for error in errors[part]]
        rows.append(SheetRow(list(originals[part]), "original"))
        rows.append(SheetRow(list(reconstructions[part]), "rebuilt", captions, ends_band=True))
    return sheet(rows, title)


def masked_page(
    originals: Array, masked: Array, predicted: Array, true: Array | None = None, title: str = ""
) -> bytes:
    """Show what the model fills in, a picture a row, two rows side by side when there are many.

    Args:
        originals: The pictures.
        masked: The same with their masked patches painted over (`paint_masks`).
        predicted: Decoded codes, the predicted ones at masked places; or pixels.
        true: Decoded codes of the whole picture: the best any prediction could look like.
        title: The title of the figure.
    """
    names = ["original", "what the model sees", "what it fills in", "true codes, decoded"]
    stacked = [originals, masked, predicted, *([] if true is None else [true])]
    names = names[: len(stacked)]
    assert len({len(column) for column in stacked}) == 1, "as many pictures in each column"
    lines = [list(pictures) for pictures in zip(*stacked, strict=True)]
    if len(lines) < 4:
        return sheet([SheetRow(line) for line in lines], title, names)
    half = -(-len(lines) // 2)
    pairs = [
        lines[place] + (lines[half + place] if half + place < len(lines) else [])
        for place in range(half)
    ]
    return sheet([SheetRow(pair) for pair in pairs], title, names * 2, group=len(names))


def paint_masks(pictures: Array, masks: Array, grey: int = _GREY) -> NDArray[np.uint8]:
    """Paint masked patches grey: (B, H, W, 3) pictures, (B, h, w) masks, True = masked."""
    painted = to_bytes(pictures).copy()
    height, width = painted.shape[1] // masks.shape[1], painted.shape[2] // masks.shape[2]
    pixels = masks.astype(bool).repeat(height, axis=1).repeat(width, axis=2)
    assert pixels.shape == painted.shape[:3], "the patch grid must divide the picture"
    painted[pixels] = grey
    return painted


def attention_page(
    pictures: Array, maps: Array, title: str = "", queries: Array | None = None
) -> bytes:
    """Show where attention goes: the picture, the mean over heads, then each head.

    Each map is scaled to its own largest value and laid over a grey copy of the picture.

    Args:
        pictures: (B, H, W, 3).
        maps: (B, heads, h, w) attention to the patches, the special token's column dropped.
        title: The title of the figure.
        queries: (B, 2) row and column of the patch that asks, framed in the picture; None when the
            special token asks.
    """
    assert len(pictures) == len(maps), "one set of maps a picture"
    rows: list[SheetRow] = []
    across = 8
    for place, picture in enumerate(to_bytes(pictures)):
        grid = maps.shape[2:]
        shown = picture if queries is None else _frame_patch(picture, queries[place], grid)
        heat = [maps[place].mean(axis=0), *maps[place]]
        cells = [shown, *(_overlay(picture, values) for values in heat)]
        names = ["picture", "mean of heads", *(f"head {head + 1}" for head in range(len(heat) - 1))]
        for start in range(0, len(cells), across):
            part = slice(start, start + across)
            last = start + across >= len(cells)
            rows.append(SheetRow(cells[part], captions=names[part], ends_band=last))
    return sheet(rows, title)


def _overlay(picture: Pixels, values: Array) -> Pixels:
    """Colour a map and lay it over the grey picture; patches stay visible as squares."""
    from matplotlib import colormaps

    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    strength = values / max(float(values.max()), 1e-12)
    colours = colormaps["inferno"](strength)[..., :3]  # (h, w, 3)
    heat = _enlarge_to(colours, picture.shape[:2])
    grey = picture.mean(axis=2, keepdims=True) / 255
    return to_bytes(0.3 * grey + 0.7 * heat)


def _frame_patch(picture: Pixels, query: Array, grid: tuple[int, ...]) -> Pixels:
    """Draw a frame around the asking patch."""
    height, width = picture.shape[0] // grid[0], picture.shape[1] // grid[1]
    top, left = int(query[0]) * height, int(query[1]) * width
    framed = picture.copy()
    thick = max(1, min(picture.shape[:2]) // 64)
    patch = framed[top : top + height, left : left + width]
    inside = patch[thick : height - thick, thick : width - thick].copy()
    patch[:] = (255, 64, 64)
    patch[thick : height - thick, thick : width - thick] = inside
    return framed


def _enlarge_to(values: Array, size: tuple[int, ...]) -> Array:
    """Nearest neighbour to any size, whole factors or not."""
    rows = np.arange(size[0]) * values.shape[0] // size[0]
    columns = np.arange(size[1]) * values.shape[1] // size[1]
    return np.asarray(values[rows][:, columns])


def sheet(
    rows: Sequence[SheetRow],
    title: str = "",
    column_titles: Sequence[str] = (),
    group: int = 0,
    largest: int = _LARGEST_CELL,
    footer: Pixels | None = None,
) -> bytes:
    """Lay rows of pictures out on one page, pixel for pixel.

    Args:
        rows: The rows; shorter ones leave room at the right.
        title: The title of the page.
        column_titles: What stands above the columns.
        group: Leave more room after every so many columns; 0 = nowhere.
        largest: The most pixels a cell may be wide.
        footer: What stands below it all, at its own size.
    """
    assert rows and any(row.pictures for row in rows), "a page needs a picture"
    columns = max(len(row.pictures) for row in rows)
    gutter = _GUTTER if any(row.title for row in rows) else 0
    lefts, cell = _columns(columns, group, gutter, largest)
    cells = [[fit(picture, cell) for picture in row.pictures] for row in rows]
    width = lefts[-1] + max(picture.shape[1] for row in cells for picture in row)
    least = round(len(title) * canvas.TITLE_SIZE * 0.8 * canvas.DENSITY)  # so that it is not cut
    text: list[tuple[float, float, str, dict[str, Any]]] = []
    top = _TITLE_BAND if title else 0
    if column_titles:
        text += [
            (left, top + 22, name, {}) for left, name in zip(lefts, column_titles, strict=False)
        ]
        top += _TEXT_BAND
    placed: list[tuple[int, int, Pixels]] = []
    for row, pictures in zip(rows, cells, strict=True):
        height = max((picture.shape[0] for picture in pictures), default=0)
        placed += [(top, left, picture) for left, picture in zip(lefts, pictures, strict=False)]
        if row.title:
            upright = {"rotation": 90, "ha": "center", "va": "center"}
            text.append((gutter / 2 - 6, top + height / 2, row.title, upright))
        lines = max((caption.count("\n") + 1 for caption in row.captions), default=0)
        text += [
            (left, top + height + 24 + _TEXT_BAND * line, words, {})
            for left, caption in zip(lefts, row.captions, strict=False)
            for line, words in enumerate(caption.split("\n"))
        ]
        top += height + _GAP + _TEXT_BAND * lines + (18 if row.ends_band else 0)
    if footer is not None:
        placed.append((top, 0, footer))
        top, width = top + footer.shape[0], max(width, footer.shape[1])
    page = np.full((top, max(width, min(least, PAGE_WIDTH)), 3), 255, dtype=np.uint8)
    for at, left, picture in placed:
        page[at : at + picture.shape[0], left : left + picture.shape[1]] = picture
    return _write_on(page, title, text)


def _columns(
    columns: int, group: int, gutter: int, largest: int = _LARGEST_CELL
) -> tuple[list[int], int]:
    """Where columns begin, and how wide a cell may be. Cells are placed at their widest."""
    breaks = [place // group if group else 0 for place in range(columns)]
    gaps = (columns - 1) * _GAP + breaks[-1] * (_GROUP_GAP - _GAP)
    cell = min(largest, (PAGE_WIDTH - gutter - gaps) // columns)
    lefts = [
        gutter + place * (cell + _GAP) + breaks[place] * (_GROUP_GAP - _GAP)
        for place in range(columns)
    ]
    return lefts, cell


def fit(picture: Array, cell: int) -> Pixels:
    """Bring a picture to the width of a cell: enlarged by a whole factor, or shrunk with care."""
    from PIL import Image

    pixels = to_bytes(picture)
    height, width = pixels.shape[:2]
    if width <= cell:
        factor = cell // width
        return pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    size = (cell, max(1, round(height * cell / width)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def to_bytes(pictures: Array) -> NDArray[np.uint8]:
    """Turn floats in [0, 1] into bytes; what is outside is clipped, what is not finite is black."""
    array = np.asarray(pictures)
    if array.dtype == np.uint8:
        return array
    finite = np.nan_to_num(array.astype(np.float64), nan=0, posinf=1, neginf=0)
    return np.round(np.clip(finite, 0, 1) * 255).astype(np.uint8)


def to_floats(pictures: Array) -> NDArray[np.float64]:
    """Turn bytes into floats in [0, 1]."""
    array = np.asarray(pictures)
    return array / 255 if array.dtype == np.uint8 else array.astype(np.float64)


def _write_on(
    page: Pixels, title: str, text: list[tuple[float, float, str, dict[str, Any]]]
) -> bytes:
    """Put the page under its texts; places are pixels from the upper left."""
    height, width = page.shape[:2]
    sliver = 0.1  # matplotlib rounds the size down
    size = ((width + sliver) / canvas.DPI, (height + sliver) / canvas.DPI)
    figure = canvas.new_figure(*size, constrained=False)
    figure.figimage(page, 0, 0)
    style: dict[str, Any] = {
        "color": canvas.QUIET,
        "fontsize": canvas.SMALL_SIZE,
        "transform": None,
    }
    for left, top, words, changes in text:
        canvas.plain(figure.text(left, height - top, words, **(style | changes)))
    if title:
        bold = style | {"color": canvas.INK, "fontsize": canvas.TITLE_SIZE, "fontweight": "bold"}
        canvas.plain(figure.text(0, height - 32, title, **bold))
    return canvas.to_png(figure)
