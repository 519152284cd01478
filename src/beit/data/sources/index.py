"""A folder of pictures, opened in time that does not depend on how many there are.

The first look reads the whole tree and keeps the result as packed arrays in the cache; later looks
compare the modification time of each *directory*, which changes whenever a file is added, removed
or renamed, and map the arrays. A file overwritten in place is not noticed by that: `rescan=True`
looks at every file, as a run does when it is resumed.
"""

from __future__ import annotations

import os
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.data.decoding.decode import read_bytes
from beit.data.decoding.formats import counted, foreign_suffix, picture_suffix, readable, way_out
from beit.data.sources.cache import (
    cache_key,
    current_generation,
    load_meta,
    open_array,
    publish_generation,
    save_array,
)
from beit.data.sources.file_table import FileTable
from beit.data.sources.indexed import IndexedSource, Split
from beit.data.sources.layout import ARRAYS, Layout, LayoutBuilder
from beit.data.sources.part_names import HELD_OUT
from beit.data.sources.path_names import PackedNames, printable
from beit.errors import UserError

_VERSION = 3  # 2: times of the files; 3: which folders are parts, what is left out
_OWN_ARRAYS = ("times", "directory_blob", "directory_offsets", "directory_times")
_SETTLED = 2_000_000_000  # ns; file systems keep times as coarsely as this

_Entry = tuple[bytes, int, int]  # relative path, size (-1 = a directory), time of change in ns


@dataclass
class _Directories:
    """The directories of a tree, as packed paths and times."""

    blob: bytearray = field(default_factory=bytearray)
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    times: array[int] = field(default_factory=lambda: array("q"))
    seen: set[tuple[int, int]] = field(default_factory=set)

    def enter(self, root: bytes, relative: bytes) -> bool:
        """Note a directory; False when links have led here before."""
        status = os.stat(os.path.join(root, relative))
        identity = (status.st_dev, status.st_ino)
        if identity in self.seen:
            return False
        self.seen.add(identity)
        self.blob += relative
        self.offsets.append(len(self.blob))
        self.times.append(status.st_mtime_ns)
        return True


class NoPicture(UserError):
    """There is none below a folder."""


def folder_index(root: bytes, *, rescan: bool = False) -> Path:
    """The generation (a folder of arrays) that describes the tree below `root`.

    Args:
        root: Absolute path.
        rescan: Look at every file even when no directory has changed.

    Raises:
        NoPicture: There is none.
        UserError: A directory cannot be read.
    """
    key = cache_key("folder", os.path.realpath(root))
    known = None if rescan else current_generation(key, *ARRAYS, *_OWN_ARRAYS)
    if known is not None and _is_current(root, known):
        return known
    started = time.time_ns()
    layout, times, directories, foreign = _scan(root)

    def write(folder: Path) -> None:
        settled = max(directories.times) < started - _SETTLED
        save_array(folder, "directory_blob", np.frombuffer(bytes(directories.blob), np.uint8))
        save_array(folder, "directory_offsets", np.array(directories.offsets, np.int64))
        save_array(folder, "directory_times", np.array(directories.times, np.int64))
        save_array(folder, "times", times)
        more = {"passed_over": foreign, "readable": readable()}
        layout.save(folder, version=_VERSION, settled=settled, **more)

    return publish_generation(key, write)


def _is_current(root: bytes, generation: Path) -> bool:
    try:
        meta = load_meta(generation)
        if meta.get("version") != _VERSION or not meta.get("settled"):
            return False
        if meta.get("readable") != readable():
            return False
        times: NDArray[Any] = open_array(generation, "directory_times")
        names = PackedNames(
            open_array(generation, "directory_blob"), open_array(generation, "directory_offsets")
        )
        # All that grows here with the tree (docs/performance.md, growth).
        above, stat = os.path.join(root, b""), os.stat
        known = zip(names, times.tolist(), strict=True)
        return all(stat(above + name).st_mtime_ns == time_ns for name, time_ns in known)
    except (OSError, ValueError):
        return False


def _scan(root: bytes) -> tuple[Layout, NDArray[np.int64], _Directories, Counter[str]]:
    """The pictures, when each was last changed (ns), the directories, and what cannot be read."""
    builder, directories, times = LayoutBuilder(), _Directories(), array("q")
    foreign: Counter[str] = Counter()
    waiting: list[_Entry] = [(b"", -1, 0)]
    while waiting:
        path, size, time_ns = waiting.pop()
        if size >= 0:
            builder.add(path, size)
            times.append(time_ns)
        elif directories.enter(root, path):
            waiting.extend(_entries(root, path, foreign))
    if not len(builder):
        raise NoPicture(
            f"there is no picture in {printable(root)}: looked for files ending in "
            + ", ".join(readable())
            + (f"; {counted(foreign)} cannot be read: {way_out(foreign)}" if foreign else "")
        )
    return builder.finish(), np.array(times, np.int64), directories, foreign


def _entries(root: bytes, relative: bytes, foreign: Counter[str]) -> list[_Entry]:
    """Directories and pictures of one directory, last first; counts the foreign ones.

    A directory sorts with its slash, so that a walk in this order meets the paths in byte order.
    """
    found: list[_Entry] = []
    directory = os.path.join(root, relative)
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir():
                    found.append((relative + entry.name + b"/", -1, 0))
                elif picture_suffix(entry.name) and entry.is_file():
                    status = entry.stat()
                    found.append((relative + entry.name, status.st_size, status.st_mtime_ns))
                elif ending := foreign_suffix(entry.name):
                    foreign[ending] += 1
    except OSError as error:
        raise UserError(
            f"cannot read the folder {printable(directory)} ({error.strerror})"
        ) from None
    found.sort(reverse=True)
    return found


class FolderSource(IndexedSource):
    """The pictures below a folder: flat, nested, or a folder a class."""

    def __init__(self, root: bytes, split: Split, *, rescan: bool = False) -> None:
        generation = folder_index(root, rescan=rescan)
        super().__init__(f"folder {printable(root)}", root, generation, split)

    def read_bytes(self, index: int) -> bytes:
        """The file's content; raises `BadPicture`."""
        return read_bytes(os.path.join(self.root, self.path(index)))

    def files(self) -> FileTable:
        """The pictures of all splits, as they were when the index was made."""
        arrays = (self._array(name) for name in ("blob", "offsets", "sizes", "times"))
        return FileTable(self.root, *arrays)

    def validation_folder(self) -> str | None:
        """A folder beside the training one that is named for validation, with pictures or not."""
        if self.training_folder is None:
            return None
        above = {folder.partition(b"/")[0] for folder in self._directories()}
        named = sorted(folder for folder in above if folder.lower() in HELD_OUT)
        return printable(named[0]) if named else None

    def _directories(self) -> PackedNames:
        return PackedNames(self._array("directory_blob"), self._array("directory_offsets"))

    def empty_classes(self) -> tuple[str, ...]:
        """Folders that stand where this part's classes do and hold no picture in any part."""
        training = self.training_folder
        above = b"" if training is None else training + b"/"
        folders = self._directories()
        below = (folder[len(above) :] for folder in folders if folder.startswith(above))
        names = (printable(path[:-1]) for path in below if path.count(b"/") == 1)
        return tuple(sorted(set(names) - set(self.classes)))
