"""A folder that `beit data pack` made: shards, and an index that is mapped and never rebuilt."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from beit.data.cache import load_meta
from beit.data.decode import BadPicture
from beit.data.naming import printable
from beit.data.packed import PackedSource, Split
from beit.errors import UserError

INDEX, MANIFEST = "index", "meta.json"
VERSION = 1
_OPEN_SHARDS = 64  # file descriptors a process keeps


def is_packed_folder(path: bytes) -> bool:
    """Whether a folder was packed."""
    index = os.path.join(path, INDEX.encode())
    return all(os.path.isfile(os.path.join(index, name)) for name in (b"meta.json", b"shard.npy"))


class PackedFolder(PackedSource):
    """Packed pictures in the order of their source, with their names, labels and splits."""

    def __init__(self, root: bytes, split: Split) -> None:
        index = Path(os.fsdecode(root)) / INDEX
        try:
            super().__init__(f"pack {printable(root)}", root, index, split)
            meta = load_meta(index)
            shards = [(str(name), int(size)) for name, size in meta["shards"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the index of {printable(root)} cannot be read ({error}); copy the folder again"
            ) from error
        if meta.get("version") != VERSION:
            raise UserError(f"{printable(root)} was packed by another version; pack it again")
        self._shards = [name for name, _ in shards]
        for name, size in shards:
            path = self._shard_path(name)
            if not os.path.isfile(path) or os.path.getsize(path) != size:
                raise UserError(
                    f"{printable(root)} lacks {name} as it was packed; copy the folder again"
                )

    def read_bytes(self, index: int) -> bytes:
        """The JPEG; raises `BadPicture`."""
        place, size = self.place(index), self.size(index)
        shard = int(self._array("shard")[place])
        try:
            data = os.pread(self._descriptor(shard), size, int(self._array("start")[place]))
        except OSError as error:
            raise BadPicture(f"cannot be read ({error.strerror})") from None
        if len(data) < size:
            raise BadPicture("truncated")
        return data

    def _shard_path(self, name: str) -> bytes:
        return os.path.join(self.root, name.encode())

    def _descriptor(self, shard: int) -> int:
        if shard not in self._descriptors:
            if len(self._descriptors) >= _OPEN_SHARDS:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            path = self._shard_path(self._shards[shard])
            self._descriptors[shard] = os.open(path, os.O_RDONLY)
        return self._descriptors[shard]

    @cached_property
    def _descriptors(self) -> dict[int, int]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_descriptors", None)
        return state

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            os.close(descriptor)
