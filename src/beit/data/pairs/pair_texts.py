"""The two texts beside a folder of masks: what the classes are called, and how they are drawn."""

import os
from pathlib import Path

from beit.data.sources.path_names import printable
from beit.errors import UserError

Palette = tuple[tuple[int, int, int], ...]  # red, green, blue of each class

MOST_CLASSES = 255  # number 255 says "ignored"


def classes_of_file(path: bytes) -> tuple[str, ...] | None:
    """The names in `classes.txt`, one a line; None when there is no such file.

    Raises:
        UserError: It names no class, too many, one twice, or has an empty line between two.
    """
    lines = _lines(path)
    if lines is None:
        return None
    names = tuple(printable(line) for line in lines)
    if not names:
        raise UserError(f"{printable(path)} names no class: write one name a line")
    if len(names) > MOST_CLASSES:
        raise UserError(f"{printable(path)} names {len(names)} classes, more than {MOST_CLASSES}")
    for place, name in enumerate(names):
        if not name or name in names[:place]:
            fault = f"names {name} a second time" if name else "is empty"
            raise UserError(f"line {place + 1} of {printable(path)} {fault}: one name a line")
    return names


def palette_of_file(path: bytes, classes: int) -> Palette | None:
    """The colours in `palette.txt`, `R G B` a line; None when there is no such file.

    Raises:
        UserError: A line is no colour, or there are not as many as classes.
    """
    lines = _lines(path)
    if lines is None:
        return None
    colours = []
    for place, line in enumerate(lines):
        colour = _colour(line)
        if colour is None:
            raise UserError(
                f"line {place + 1} of {printable(path)} is no colour: write three numbers from 0 "
                "to 255, such as 128 64 0"
            )
        colours.append(colour)
    if len(colours) != classes:
        raise UserError(
            f"{printable(path)} holds {len(colours)} colours for {classes} classes: write one a "
            "line and class, or remove the file"
        )
    return tuple(colours)


def _lines(path: bytes) -> list[bytes] | None:
    """The lines without the space around them and without empty ones at the end."""
    try:
        text = Path(os.fsdecode(path)).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {printable(path)} ({error.strerror})") from None
    return [line.strip() for line in text.removeprefix(b"\xef\xbb\xbf").rstrip().splitlines()]


def _colour(line: bytes) -> tuple[int, int, int] | None:
    try:
        red, green, blue = (int(part) for part in line.replace(b",", b" ").split())
    except ValueError:
        return None
    inside = all(0 <= value <= 255 for value in (red, green, blue))
    return (red, green, blue) if inside else None
