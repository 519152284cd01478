"""Pictures inside .tar files, read where they lie.

Headers are read once and an offset index is kept in the cache, valid while size and time of every
shard stay the same. Nothing is ever extracted: a member is a range of bytes that is read with
`pread`, so threads and forked workers do not disturb one another. Only regular members with a
picture's name are listed; links, devices, pickles, hidden members and everything else are passed
over, but for the class numbers that WebDataset keeps in members `key.cls` beside `key.jpg`.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from beit.data.decoding.formats import foreign_suffix, picture_suffix, readable
from beit.data.sources.cache import (
    cache_key,
    current_generation,
    load_meta,
    publish_generation,
    save_array,
)
from beit.data.sources.file_table import FileTable
from beit.data.sources.indexed import Split
from beit.data.sources.layout import ARRAYS, Layout, LayoutBuilder
from beit.data.sources.part_names import PARTS, TRAINING
from beit.data.sources.path_names import printable
from beit.data.sources.ranges import RangeSource
from beit.errors import UserError

_VERSION = 3  # 2: hidden members are passed over; 3: parts in shards' names, labels in members
_SETTLED = 2_000_000_000  # ns, as for folders
_FORGET_EVERY = 1_000  # members; `tarfile` would remember each one
_LABEL_BYTES = 20  # of a member that holds a number and may end a line


@dataclass
class _Members:
    """Where each picture lies; filled in the order of the paths' sources, sorted at the end."""

    names: list[bytes] = field(default_factory=list)
    shards: array[int] = field(default_factory=lambda: array("i"))
    starts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("q"))  # of members, -1 = none
    foreign: Counter[str] = field(default_factory=Counter)  # endings of what cannot be read


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
            split = not folder and name.lower() in PARTS
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
                if relative or entry.name.lower() not in PARTS:
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
    known = None if rescan else current_generation(key, *ARRAYS, "shard", "start")
    if known is not None and _is_current(known, stamps):
        return known
    settled = max(time_ns for _, _, time_ns in stamps) < time.time_ns() - _SETTLED
    members = _list_members(root, shards)
    order = sorted(range(len(members.names)), key=members.names.__getitem__)
    layout = _layout(members, order)

    def write(folder: Path) -> None:
        save_array(folder, "shard", np.array(members.shards, np.int32)[order])
        save_array(folder, "start", np.array(members.starts, np.int64)[order])
        more = {"stamps": stamps, "passed_over": members.foreign, "readable": readable()}
        layout.save(folder, version=_VERSION, settled=settled, **more)

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
    facts = [meta.get(name) for name in ("version", "settled", "readable", "stamps")]
    return facts == [_VERSION, True, readable(), stamps]


def _layout(members: _Members, order: list[int]) -> Layout:
    builder = LayoutBuilder()
    for place in order:
        builder.add(members.names[place], members.sizes[place])
    layout = builder.finish()
    labels = np.array(members.labels, np.int64)[order]
    if (labels < 0).all():
        return layout
    # The numbers in the archive count, and not the folders that its members are in.
    numbers = np.unique(labels[labels >= 0])
    places = np.searchsorted(numbers, labels)
    own = np.where(labels < 0, -1, places).astype(np.int32)
    digest = hashlib.blake2b(layout.fingerprint.encode() + labels.tobytes(), digest_size=16)
    names = tuple(str(number).encode() for number in numbers.tolist())
    return replace(layout, labels=own, classes=names, fingerprint=digest.hexdigest())


def _list_members(root: bytes, shards: list[bytes]) -> _Members:
    members = _Members()
    prefixes = _prefixes(root, shards)
    for number, shard in enumerate(shards):
        first, labels = len(members.names), {}
        for name, start, size, label in _pictures(_shard_path(root, shard), members.foreign):
            if label is not None:
                labels[_key(name)] = label
                continue
            members.names.append(prefixes[number] + name)
            members.shards.append(number)
            members.starts.append(start)
            members.sizes.append(size)
        of = len(prefixes[number])
        members.labels.extend(labels.get(_key(name[of:]), -1) for name in members.names[first:])
    if not members.names:
        raise UserError(f"there is no picture in the tar files of {printable(root)}")
    return members


def _prefixes(root: bytes, shards: Sequence[bytes]) -> list[bytes]:
    """`train/` for `train/0.tar`, `train-0.tar` or `imagenet1k-train-0000.tar`, else nothing.

    A shard's own name tells its part where some shard's name says that it is to be trained on.
    """
    own = [os.path.basename(root) if shard == b"" else shard for shard in shards]
    parts = [name.rpartition(b"/")[0].lower() or _part_in(name) for name in own]
    named = any(part in TRAINING for part in parts) and len(shards) > 1
    folders = [shard.rpartition(b"/")[0] for shard in shards]
    told = [folder or (part if named else b"") for folder, part in zip(folders, parts, strict=True)]
    return [name + b"/" if name else b"" for name in told]


def _part_in(shard: bytes) -> bytes:
    """The last word of a shard's name that is a part's, b"" without one."""
    words = re.split(rb"[-_.]", shard.lower())
    return next((word for word in reversed(words) if word in PARTS), b"")


def _key(name: bytes) -> bytes:
    """What members that belong together share: the name up to the first dot of its last part."""
    folder, _, last = name.rpartition(b"/")
    return folder + b"/" + last.partition(b".")[0]


_Found = tuple[bytes, int, int, int | None]  # name, first byte, size; the number of a label


def _pictures(path: bytes, foreign: Counter[str]) -> Iterator[_Found]:
    """The pictures of a shard, and the labels beside them; counts what cannot be read."""
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
                if member.isreg() and not member.issparse() and not _is_hidden(name):
                    label = _label(archive, member)
                    if picture_suffix(name) or label is not None:
                        yield name, member.offset_data, member.size, label
                    elif ending := foreign_suffix(name):
                        foreign[ending] += 1
                seen: list[tarfile.TarInfo] = archive.members  # type: ignore[attr-defined]
                if len(seen) > _FORGET_EVERY:
                    seen.clear()
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(
            f"{printable(path)} is not a readable tar file ({error}); compressed shards have to "
            "be unpacked to plain .tar first"
        ) from None


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo) -> int | None:
    """The number in a member `key.cls`, None when it is another member or holds no number."""
    if not member.name.endswith(".cls") or member.size > _LABEL_BYTES:
        return None
    content = archive.extractfile(member)
    text = b"" if content is None else content.read(_LABEL_BYTES).strip()
    return int(text) if text.isdigit() and len(text) < 10 else None


def _plain(name: bytes) -> bytes:
    """A member's path without what leads nowhere: `./`, `../` and `/` at its start."""
    parts = name.split(b"/")
    while parts and parts[0] in (b"", b".", b".."):
        del parts[0]
    return b"/".join(parts)


def _is_hidden(name: bytes) -> bool:
    """Whether it or a folder that it is in begins with a dot."""
    return name.startswith(b".") or b"/." in name


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
