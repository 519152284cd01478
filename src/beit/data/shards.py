"""Pictures inside .tar files, read where they lie.

Headers are read once and an offset index is kept in the cache, valid while size and time of every
shard stay the same. Nothing is ever extracted: a member is a range of bytes that is read with
`pread`, so threads and forked workers do not disturb one another. Only regular members with a
picture's name are listed; links, devices, pickles, hidden members and everything else are passed
over.
"""

from __future__ import annotations

import os
import tarfile
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from beit.data.cache import (
    cache_key,
    current_generation,
    load_meta,
    publish_generation,
    save_array,
)
from beit.data.file_table import FileTable
from beit.data.index import picture_suffix
from beit.data.layout import VALIDATION_NAMES, Layout, LayoutBuilder
from beit.data.naming import printable
from beit.data.packed import Split
from beit.data.ranges import RangeSource
from beit.errors import UserError

_VERSION = 2  # 2: hidden members are passed over
_SPLIT_NAMES = (b"train", *VALIDATION_NAMES)
_SETTLED = 2_000_000_000  # ns, as for folders
_FORGET_EVERY = 1_000  # members; `tarfile` would remember each one


@dataclass
class _Members:
    """Where each picture lies; filled in the order of the paths' sources, sorted at the end."""

    names: list[bytes] = field(default_factory=list)
    shards: array[int] = field(default_factory=lambda: array("i"))
    starts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))


def find_shards(root: bytes) -> list[bytes]:
    """The .tar files of a path, relative to it, sorted; [b""] when the path is one itself.

    A folder counts as shards only when it holds nothing else to read: an archive lying beside the
    pictures that came out of it changes nothing.
    """
    if os.path.isfile(root):
        return [b""]
    found: list[bytes] = []
    folders = [b""]
    while folders:
        folder = folders.pop()
        within = _tars(root, folder)
        if within is None:
            return []
        found += (name for name in within if not name.endswith(b"/"))
        folders += (name for name in within if name.endswith(b"/"))
    return sorted(found)


def other_folder(root: bytes) -> str | None:
    """The folder for which the .tar files of a path are not taken for shards, None without any."""
    folders: list[bytes] = [b""]
    others: list[bytes] = []
    tars = 0
    while folders:
        folder = folders.pop()
        for name in sorted(os.listdir(os.path.join(root, folder))):
            path = os.path.join(folder, name)
            tars += name.lower().endswith(b".tar")
            if name.startswith(b".") or not os.path.isdir(os.path.join(root, path)):
                continue
            split = not folder and name.lower() in _SPLIT_NAMES
            (folders if split else others).append(path)
    return printable(others[0]) if tars and others else None


def _tars(root: bytes, relative: bytes) -> list[bytes] | None:
    """The .tar files and the split folders (ending in a slash) of a folder.

    None as soon as there is something else to read: the first entry of most folders of pictures.
    """
    found = []
    with os.scandir(os.path.join(root, relative)) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir():
                if relative or entry.name.lower() not in _SPLIT_NAMES:
                    return None
                found.append(entry.name + b"/")
            elif entry.name.lower().endswith(b".tar"):
                found.append(relative + entry.name)
            elif picture_suffix(entry.name):
                return None
    return found


def shard_index(root: bytes, shards: list[bytes], *, rescan: bool = False) -> Path:
    """The generation that describes the pictures inside the shards.

    Raises:
        UserError: A shard is no readable tar file, or there is no picture in any.
    """
    key = cache_key("shards", os.path.realpath(root))
    stamps = [_stamp(root, shard) for shard in shards]
    known = None if rescan else current_generation(key)
    if known is not None and _is_current(known, stamps):
        return known
    settled = max(time_ns for _, _, time_ns in stamps) < time.time_ns() - _SETTLED
    members = _list_members(root, shards)
    order = sorted(range(len(members.names)), key=members.names.__getitem__)
    layout = _layout(members, order)

    def write(folder: Path) -> None:
        save_array(folder, "shard", np.array(members.shards, np.int32)[order])
        save_array(folder, "start", np.array(members.starts, np.int64)[order])
        layout.save(folder, version=_VERSION, settled=settled, stamps=stamps)

    return publish_generation(key, write)


def _stamp(root: bytes, shard: bytes) -> list[Any]:
    status = os.stat(_shard_path(root, shard))
    return [shard.hex(), status.st_size, status.st_mtime_ns]


def _shard_path(root: bytes, shard: bytes) -> bytes:
    return os.path.join(root, shard) if shard else root


def _is_current(generation: Path, stamps: list[list[Any]]) -> bool:
    try:
        meta = load_meta(generation)
    except (OSError, ValueError):
        return False
    facts = (meta.get("version"), meta.get("settled"), meta.get("stamps"))
    return facts == (_VERSION, True, stamps)


def _layout(members: _Members, order: list[int]) -> Layout:
    builder = LayoutBuilder()
    for place in order:
        builder.add(members.names[place], members.sizes[place])
    return builder.finish()


def _list_members(root: bytes, shards: list[bytes]) -> _Members:
    members = _Members()
    for number, shard in enumerate(shards):
        prefix = _split_prefix(shard)
        for name, start, size in _pictures(_shard_path(root, shard)):
            members.names.append(prefix + name)
            members.shards.append(number)
            members.starts.append(start)
            members.sizes.append(size)
    if not members.names:
        raise UserError(f"there is no picture in the tar files of {printable(root)}")
    return members


def _split_prefix(shard: bytes) -> bytes:
    """`train/` for `train/0.tar` and for `train-0.tar`: the shard's name may tell the split."""
    folder, _, name = shard.rpartition(b"/")
    if folder:
        return folder + b"/"
    stem = name.lower().removesuffix(b".tar").rstrip(b"0123456789").rstrip(b"-_.")
    return stem + b"/" if stem in _SPLIT_NAMES else b""


def _pictures(path: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of each picture of a shard."""
    try:
        with tarfile.open(os.fsdecode(path), "r:") as archive:
            if archive.firstmember is None:  # type: ignore[attr-defined]
                return  # Python 3.10 would seek before the start of an empty archive
            last = -1
            while (member := archive.next()) is not None:
                # A header with a negative size would lead back and round for ever.
                if member.offset <= last or member.size < 0:
                    raise tarfile.ReadError("headers out of order")
                last = member.offset
                name = _plain(os.fsencode(member.name))
                if member.isreg() and not member.issparse() and _is_picture(name):
                    yield name, member.offset_data, member.size
                seen: list[tarfile.TarInfo] = archive.members  # type: ignore[attr-defined]
                if len(seen) > _FORGET_EVERY:
                    seen.clear()
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(
            f"{printable(path)} is not a readable tar file ({error}); compressed shards have to "
            "be unpacked to plain .tar first"
        ) from None


def _plain(name: bytes) -> bytes:
    """A member's path without what leads nowhere: `./`, `../` and `/` at its start."""
    parts = name.split(b"/")
    while parts and parts[0] in (b"", b".", b".."):
        del parts[0]
    return b"/".join(parts)


def _is_picture(name: bytes) -> bool:
    """Whether it ends as a picture's does and is not hidden, nor in a hidden folder."""
    folder, _, last = name.rpartition(b"/")
    return picture_suffix(last) and not (folder.startswith(b".") or b"/." in folder)


class ShardSource(RangeSource):
    """The pictures inside a .tar file or a folder of .tar files."""

    def __init__(
        self, root: bytes, shards: list[bytes], split: Split, *, rescan: bool = False
    ) -> None:
        generation = shard_index(root, shards, rescan=rescan)
        super().__init__(f"shards {printable(root)}", root, generation, split)
        self._shards = shards

    def files(self) -> FileTable:
        """The .tar files, as they were when the index was made."""
        stamps = load_meta(self._generation)["stamps"]
        single = os.path.basename(self.root)
        root = self.root if self._shards != [b""] else os.path.dirname(self.root)
        rows = [(bytes.fromhex(name) or single, size, time_ns) for name, size, time_ns in stamps]
        return FileTable.of(root, rows)

    def shard_path(self, shard: int) -> bytes:
        """The .tar file."""
        return _shard_path(self.root, self._shards[shard])
