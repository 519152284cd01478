"""Masks as people see them: in colours, over the picture, with a legend.

Masks are (H, W) class numbers; 255 counts for nothing and is black.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from beit.report import canvas
from beit.report.pictures import PAGE_WIDTH, SheetRow, sheet
from beit.report.text import format_percent

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Pixels = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.uint8]  # (H, W)
Colours = Sequence[Sequence[int]]  # red, green, blue of each class

IGNORED = 255
_IGNORED_COLOUR = (0, 0, 0)
_STRENGTH = 0.6  # of the colour over the picture; borders between classes have all of it
_LIFT = 70  # levels by which black is raised below the colours, so that none drowns in the dark
_LEAST_WIDTH = 480  # of an overlay: smaller pictures are enlarged, so that there is room for text
_MOST_SIDE = 4_000  # pixels of an overlay; larger pictures are thinned out
_MOST_ROWS = 1_000  # pixels that a picture of a page may be high
_LONGEST_NAME = 28
_LIGHTNESS = (28.0, 92.0)  # of colours that are neither nearly black nor nearly white


def class_colours(classes: int, palette: Colours | None = None) -> Colours:
    """The colours of a palette, or as many that are easily told apart."""
    if palette is None:
        return _distinct_colours()[:classes]
    assert len(palette) >= classes, "a colour a class"
    return palette


def index_png(prediction: Mask, palette: Colours | None) -> bytes:
    """Write a mask as a PNG whose pixel values are the classes, shown in colours by viewers.

    Args:
        prediction: (H, W) classes, 255 = none.
        palette: A colour a class; None = easily told apart.
    """
    table = _table(class_colours(IGNORED if palette is None else len(palette), palette))
    image = Image.fromarray(np.ascontiguousarray(prediction, dtype=np.uint8))
    image.putpalette(table.tobytes())  # all 256: with fewer Pillow would store fewer bits a pixel
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def overlay(
    image: Pixels, prediction: Mask, palette: Colours | None, classes: Sequence[str]
) -> Image.Image:
    """Colour a picture by class, with a legend of the classes that are there, largest first.

    Args:
        image: (H, W, 3).
        prediction: (H, W) classes, 255 = none.
        palette: A colour a class; None = easily told apart.
        classes: Their names.
    """
    colours = class_colours(len(classes), palette)
    shown = coloured(*_thinned(image, prediction), colours)
    height, width = shown.shape[:2]
    factor = max(1, min(-(-_LEAST_WIDTH // width), _MOST_SIDE // height))
    shown = shown.repeat(factor, axis=0).repeat(factor, axis=1)
    counts = np.bincount(prediction.ravel(), minlength=256)
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    names = [f"{_name(k, classes)} {format_percent(counts[k] / prediction.size)}" for k in order]
    width = max(_LEAST_WIDTH, shown.shape[1])
    size = min(30, max(15, width // 36))
    key = legend(names, [_colour(k, colours) for k in order], width, size)
    page = Image.new("RGB", (width, shown.shape[0] + key.shape[0]), canvas.PAPER)
    page.paste(Image.fromarray(shown))
    page.paste(Image.fromarray(key), (0, shown.shape[0]))
    return page


def overlay_page(
    rows: Sequence[tuple[Pixels, Mask, Mask]],
    palette: Colours | None,
    classes: Sequence[str],
    title: str = "",
    names: Sequence[str] = (),
) -> bytes:
    """Put picture, truth and prediction side by side, a picture a row, with one legend.

    Args:
        rows: Pictures (H, W, 3), true classes (H, W) and predicted ones (H, W).
        palette: A colour a class; None = easily told apart.
        classes: Their names.
        title: The title of the page.
        names: What the pictures are called.

    Returns:
        A PNG.
    """
    assert rows, "a page needs a picture"
    colours = class_colours(len(classes), palette)
    lines = []
    for place, (image, truth, prediction) in enumerate(rows):
        cells = [image, *(coloured(*_thinned(image, m), colours) for m in (truth, prediction))]
        name = names[place] if place < len(names) else ""
        captions = [_shortened(name, 60), "", _agreement(truth, prediction)]
        lines.append(SheetRow(cells, captions=captions))
    there = np.unique(np.concatenate([part.ravel() for _, *masks in rows for part in masks]))
    keys = [int(k) for k in there]
    cell = _cell_width([image.shape[:2] for image, _, _ in rows])
    key = legend(
        [_name(k, classes) for k in keys],
        [_colour(k, colours) for k in keys],
        min(PAGE_WIDTH, max(720, 3 * cell + 16)),
        round(canvas.TEXT_SIZE * canvas.DPI / 72),
    )
    columns = ["picture", "truth", "prediction"]
    return sheet(lines, title, columns, largest=cell, footer=key)


def coloured(image: Pixels, mask: Mask, colours: Colours) -> Pixels:
    """Lay a mask over a greyed picture; where two classes meet the colour covers it."""
    assert image.shape[:2] == mask.shape, "a mask has its picture's size"
    colour = _table(colours)[mask].astype(np.float32)
    grey = _LIFT + (1 - _LIFT / 255) * image.mean(axis=2, keepdims=True, dtype=np.float32)
    strength = np.where(_borders(mask) | (mask == IGNORED), 1.0, _STRENGTH)[..., None]
    strength = strength.astype(np.float32)
    return np.asarray(np.rint(strength * colour + (1 - strength) * grey), dtype=np.uint8)


def legend(names: Sequence[str], colours: Colours, width: int, size: int) -> Pixels:
    """A patch of colour and a name for each class, in columns, on paper.

    Args:
        names: Text from outside is made drawable.
        colours: One a name.
        width: Pixels of the strip.
        size: Pixels of the letters' height.
    """
    font = _font(size)
    texts = [canvas.drawable(_shortened(name, _LONGEST_NAME + 8)) for name in names]
    patch, gap = round(1.5 * size), size // 2
    widest = max((round(font.getlength(text)) for text in texts), default=0)
    cell, line = patch + 3 * gap + widest, round(1.6 * size)
    across = max(1, width // cell)
    down = -(-len(texts) // across)
    strip = Image.new("RGB", (width, down * line + 2 * gap), canvas.PAPER)
    draw = ImageDraw.Draw(strip)
    for place, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        left, top = (place // down) * cell, gap + (place % down) * line
        red, green, blue = colour
        box = (left, top, left + patch, top + size)
        draw.rectangle(box, (red, green, blue), outline=canvas.QUIET)
        draw.text((left + patch + gap, top + size // 2), text, canvas.INK, font, anchor="lm")
    return np.asarray(strip)


def _thinned(image: Pixels, mask: Mask) -> tuple[Pixels, Mask]:
    """Every second, third, ... pixel of a picture that is too large to look at."""
    step = -(-max(mask.shape) // _MOST_SIDE)
    return image[::step, ::step], mask[::step, ::step]


def _borders(mask: Mask) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour is of another class."""
    found = np.zeros(mask.shape, np.bool_)
    found[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    found[:-1] |= mask[:-1] != mask[1:]
    return found


def _agreement(truth: Mask, prediction: Mask) -> str:
    counted = truth != IGNORED
    if not counted.any():
        return "nothing to compare with"
    return f"{format_percent((truth == prediction)[counted].mean())} of the pixels right"


def _cell_width(sizes: Sequence[tuple[int, ...]]) -> int:
    """How wide a picture may be: three fill the page, none is too high."""
    room = PAGE_WIDTH // 3 - 8
    widest = max(width for _, width in sizes)
    if widest <= room:  # it will be enlarged by a whole factor
        room = widest * (room // widest)
    steepest = max(height / width for height, width in sizes)
    return max(4, min(room, round(_MOST_ROWS / steepest)))


def _table(colours: Colours) -> NDArray[np.uint8]:
    """(256, 3) the colour of each number."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    table[IGNORED] = _IGNORED_COLOUR
    return table


def _name(number: int, classes: Sequence[str]) -> str:
    return "not counted" if number == IGNORED else _shortened(classes[number], _LONGEST_NAME)


def _colour(number: int, colours: Colours) -> Sequence[int]:
    return _IGNORED_COLOUR if number == IGNORED else colours[number]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@cache
def _font(size: int) -> FreeTypeFont:
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


@cache
def _distinct_colours() -> tuple[tuple[int, int, int], ...]:
    """255 colours, each as far as can be from black, white and those before it.

    Far is meant in CIELAB, where distances are about as large as they look.
    """
    levels = np.linspace(0, 255, 10).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lightness = _lab(grid)[:, 0]
    candidates = grid[(lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1])]
    seen = _lab(candidates)
    ends = _lab(np.array([[0.0, 0, 0], [255, 255, 255]]))
    nearest = np.linalg.norm(seen[:, None] - ends, axis=-1).min(1)
    chosen = []
    for _ in range(IGNORED):
        best = int(nearest.argmax())
        red, green, blue = (int(value) for value in candidates[best])
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[best], axis=1))
    return tuple(chosen)


def _lab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """SRGB (N, 3) in 0..255 to CIELAB under daylight (D65)."""
    linear = colours / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    share = linear @ to_xyz.T / to_xyz.sum(1)
    root = np.where(share > (6 / 29) ** 3, np.cbrt(share), share * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
