"""File names are bytes; what is printed is text that no terminal or page can trip over."""

import os
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from beit.errors import UserError


def printable(name: bytes) -> str:
    """Write a name as one line of plain text, different names differently.

    Valid UTF-8 stays as it is (emoji too); bytes that are not, control characters and the
    backslash are escaped.
    """
    text = name.replace(b"\\", b"\\\\").decode("utf-8", errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


class PackedNames:
    """Many names in two arrays: one run of bytes, and where each name begins in it."""

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._blob = blob
        self._offsets = offsets  # one more than there are names

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, place: int) -> bytes:
        return self._blob[self._offsets[place] : self._offsets[place + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        """All of them, from a copy of the bytes: for few names."""
        blob, offsets = self._blob.tobytes(), self._offsets.tolist()
        return (blob[start:stop] for start, stop in pairwise(offsets))


def encode_path(path: str | os.PathLike[str]) -> bytes:
    """The absolute form of a path a user typed, `~` resolved, as bytes.

    Raises:
        UserError: It is empty, as a variable of the shell that was never set; that is not meant to
            be the folder the user happens to be in.
    """
    if not os.fspath(path):
        raise UserError("an empty name names no pictures; write . for this folder")
    return os.path.abspath(os.fsencode(os.path.expanduser(path)))
