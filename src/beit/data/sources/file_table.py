"""The files that a source reads, so that a run can tell later which of them are others.

A folder keeps such a table in `pictures.npz` (arrays of numbers, no pickle). What counts is a
file's path below the root, its size and its content. Content is known by a hash where a set is
small enough to be read at once; elsewhere the time of the last change stands for it: where the
times of *some* files differ these were edited, where those of all differ the set was copied.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from beit.data.decoding.decode import BadPicture, read_bytes
from beit.data.sources.path_names import PackedNames, printable
from beit.errors import UserError
from beit.files import atomic_write_bytes

FILE_NAME = "pictures.npz"
LISTED = 2_000_000  # files; the names of more are not kept
HASHED = 1 << 28  # bytes; files that are larger together are not read for their hashes

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class FileTable:
    """Files below a root in the byte order of their paths."""

    root: bytes
    blob: NDArray[np.uint8]  # the relative paths, one after the other
    offsets: Integers  # (count + 1,)
    sizes: Integers  # (count,) bytes
    times: Integers  # (count,) ns of the last change

    @classmethod
    def of(cls, root: bytes, rows: list[tuple[bytes, int, int]]) -> "FileTable":
        """The table of (path, size, time) rows."""
        rows = sorted(rows)
        offsets = np.cumsum([0, *(len(path) for path, _, _ in rows)], dtype=np.int64)
        blob = np.frombuffer(b"".join(path for path, _, _ in rows), np.uint8)
        numbers = np.array([row[1:] for row in rows], np.int64).reshape(-1, 2)
        return cls(root, blob, offsets, numbers[:, 0], numbers[:, 1])

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def names(self) -> PackedNames:
        """The paths."""
        return PackedNames(self.blob, self.offsets)

    def rows(self, below: bytes = b"") -> Iterator[tuple[bytes, int, int]]:
        """(path, size, time) of each, the paths put below a folder."""
        numbers = zip(self.sizes.tolist(), self.times.tolist(), strict=True)
        for name, (size, time) in zip(self.names, numbers, strict=True):
            yield os.path.join(below, name), size, time

    def content(self, place: int) -> int:
        """64 bits of a hash of a file's content, 0 when it cannot be read."""
        try:
            data = read_bytes(os.path.join(self.root, self.names[place]))
        except BadPicture:
            return 0
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@runtime_checkable
class HasFiles(Protocol):
    """A source that knows the files it reads."""

    def files(self) -> FileTable | None:
        """All of them, those of other splits too where one index covers both; None = unknown."""


def files_of(source: object) -> FileTable | None:
    """The files that a source reads, where it knows them."""
    return source.files() if isinstance(source, HasFiles) else None


def joined(tables: list[FileTable]) -> FileTable:
    """The files of several folders, as one table below the folder that holds them all."""
    root = os.path.commonpath([table.root for table in tables])
    rows = [row for t in tables for row in t.rows(os.path.relpath(t.root, root))]
    return FileTable.of(root, rows)


def keep_files(folder: Path, source: object) -> None:
    """Write down in `folder` what a source reads, unless just that is written there."""
    table, file = files_of(source), folder / FILE_NAME
    if table is None or len(table) > LISTED:
        file.unlink(missing_ok=True)
        return
    kept = _read(folder)
    if kept is not None and _same(kept[0], table):
        return
    small = int(table.sizes.sum()) <= HASHED
    contents = [table.content(place) for place in range(len(table) if small else 0)]
    buffer = io.BytesIO()
    arrays = {name: getattr(table, name) for name in ("blob", "offsets", "sizes", "times")}
    np.savez(buffer, contents=np.array(contents, np.uint64), **arrays)
    atomic_write_bytes(file, buffer.getvalue())


def changed_files(folder: Path, source: object) -> str | None:
    """What is other than `keep_files` wrote down, in one phrase that names the first such file.

    Returns:
        None when nothing is, and when nothing was written down.

    Raises:
        UserError: What was written down cannot be read.
    """
    table, kept = files_of(source), _read(folder)
    if table is None or kept is None or _same(kept[0], table):
        return None
    changes = dict(_changes(*kept, table))
    if not changes:
        return None
    first = min(changes)
    more = len(changes) - 1
    others = f", and {more} more file{'s differ' if more > 1 else ' differs'}" if more else ""
    return f"{printable(first)} was {changes[first]}{others}"


def _same(one: FileTable, other: FileTable) -> bool:
    names = ("offsets", "blob", "sizes", "times")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def _changes(
    before: FileTable, contents: NDArray[np.uint64], now: FileTable
) -> Iterator[tuple[bytes, str]]:
    """Each file that is other now, and what became of it."""
    places = {name: place for place, name in enumerate(before.names)}
    common: list[tuple[int, int]] = []
    for place, name in enumerate(now.names):
        if name in places:
            common.append((places.pop(name), place))
        else:
            yield name, "added"
    for name in places:
        yield name, "removed"
    old, new = np.array(common, np.int64).reshape(-1, 2).T
    resized = before.sizes[old] != now.sizes[new]
    touched = before.times[old] != now.times[new]
    if not len(contents) and touched.all() and not resized.any():
        return  # copied or checked out anew
    for at in np.flatnonzero(resized | touched).tolist():
        place = int(new[at])
        known = len(contents) and not resized[at]
        if not known or now.content(place) != int(contents[old[at]]):
            yield now.names[place], "edited"


def _read(folder: Path) -> tuple[FileTable, NDArray[np.uint64]] | None:
    file = folder / FILE_NAME
    if not file.is_file():
        return None
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            found: dict[str, NDArray[Any]] = {name: arrays[name] for name in arrays.files}
        contents = found.pop("contents")
        return FileTable(b"", **found), contents
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        # numpy takes what it does not know for a pickle, and tells how to load it unsafely.
        why = "it is damaged" if "pickle" in str(error) else error
        raise UserError(
            f"{file} cannot be read ({why}); remove it, and the pictures are told from others by "
            "their names and sizes alone"
        ) from error
