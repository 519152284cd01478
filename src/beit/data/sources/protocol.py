"""What a source of pictures is."""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Source(Protocol):
    """A numbered set of pictures, the same numbers for the same data."""

    @property
    def name(self) -> str:
        """What the pictures are called where they are spoken of."""

    @property
    def fingerprint(self) -> str:
        """A text that is another when a picture is added, removed, renamed or changes its size.

        `beit.data.sources.file_table` tells which, and notices edits that leave the size as it was.
        """

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names by their numbers, () = unlabelled."""

    def __len__(self) -> int:
        """How many pictures there are."""

    def read(self, index: int, /) -> Image.Image:
        """Picture `index` as RGB; raises `beit.data.decoding.decode.BadPicture` with the reason."""

    def identity(self, index: int, /) -> str:
        """What the picture is called, one line of printable text."""

    def label(self, index: int, /) -> int:
        """The number of the picture's class, -1 = none."""


@runtime_checkable
class HasBytes(Protocol):
    """A source of files: what it reads is what `beit.data.decoding.decode` makes of them."""

    def read_bytes(self, index: int, /) -> bytes:
        """The file's content; raises `BadPicture`."""


@runtime_checkable
class KnowsLabels(Protocol):
    """A source that has all its labels at hand."""

    def labels(self) -> NDArray[np.int64]:
        """The class of every picture, (N,), -1 = none."""


def labels_of(source: Source) -> NDArray[np.int64]:
    """The class of every picture, (N,), -1 = none; without reading a picture where that can be."""
    if isinstance(source, KnowsLabels):
        return source.labels()
    return np.array([source.label(index) for index in range(len(source))], np.int64)
