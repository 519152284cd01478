"""Pictures that are given to be looked at: names, pictures of Pillow's, arrays, or a mixture."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.decoding.decode import BadPicture, of_pillow
from beit.data.sources.arrays import ArraySource
from beit.data.sources.file_list import named_files
from beit.data.sources.handed import pictures
from beit.errors import UserError

Given = str | Path | Image.Image | NDArray[np.uint8] | ArraySource
_WAYS = (
    "give a file, a folder or a pattern, a picture of Pillow's, an array (H, W, 3), (H, W) or "
    "(N, H, W, 3) of uint8, or a list of such"
)


@dataclass(frozen=True)
class GivenPicture:
    """One of them: how it is called, and what gives it in RGB or raises `BadPicture`."""

    name: str
    open: Callable[[], Image.Image]

    def read(self) -> Image.Image:
        """Open it.

        Raises:
            UserError: It cannot be read.
        """
        try:
            return self.open()
        except BadPicture as error:
            raise UserError(f"{self.name} cannot be read ({error.reason}): leave it out") from error


def given_pictures(given: Given | Sequence[Given]) -> list[GivenPicture]:
    """What was given, one after the other: of a folder all pictures below it, by their paths.

    Raises:
        UserError: A name names nothing, or a thing is no picture.
    """
    several = given if isinstance(given, (list, tuple)) else [given]
    found = [picture for number, one in enumerate(several) for picture in _of(one, number)]
    if not found:
        raise UserError(f"no picture was given: {_WAYS}")
    return found


def _of(given: object, number: int) -> Iterator[GivenPicture]:
    if isinstance(given, Image.Image):
        name = getattr(given, "filename", "") or f"picture {number}"
        yield GivenPicture(str(name), lambda: of_pillow(given))
    elif isinstance(given, (str, os.PathLike)):
        yield from _all(named_files([given]))
    elif isinstance(given, ArraySource):
        yield from _all(given)
    elif isinstance(given, np.ndarray):
        yield from _all(pictures(_stacked(given), name=f"array {number}"))
    else:
        raise UserError(f"a {type(given).__name__} is no picture: {_WAYS}")


def _all(source: Any) -> Iterator[GivenPicture]:
    for index in range(len(source)):
        yield GivenPicture(source.identity(index), partial(source.read, index))


def _stacked(array: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W, 3): one picture alone is a stack of one."""
    single = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)
    return array[None] if single else array
