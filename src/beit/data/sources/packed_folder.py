"""A folder that `beit data pack` made: shards, and an index that is mapped and never rebuilt."""

import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beit.data.decoding.decode import BadPicture
from beit.data.sources.cache import load_meta, open_array
from beit.data.sources.file_table import FileTable
from beit.data.sources.indexed import Split
from beit.data.sources.path_names import printable
from beit.data.sources.ranges import RangeSource
from beit.errors import UserError

INDEX, MANIFEST, SHARD_SIZES = "index", "meta.json", "shard_sizes"
VERSION = 2
_LOOKED_AT = 64  # shards, when a folder is opened; all others when they are first read

Integers = NDArray[np.int64]


def shard_name(split: str, number: int) -> str:
    """Where a split's shard lies in the folder."""
    return f"{split}/{number:05d}.tar"


def is_packed_folder(path: bytes) -> bool:
    """Whether a folder was packed."""
    index = os.path.join(path, INDEX.encode())
    return all(os.path.isfile(os.path.join(index, name)) for name in (b"meta.json", b"shard.npy"))


class PackedFolder(RangeSource):
    """Packed pictures in the order of their source, with their names, labels and splits."""

    def __init__(self, root: bytes, split: Split) -> None:
        index = Path(os.fsdecode(root)) / INDEX
        try:
            super().__init__(f"pack {printable(root)}", root, index, split)
            meta = load_meta(index)
            if meta.get("version") != VERSION:
                raise UserError(f"{printable(root)} was packed by another version; pack it again")
            # Written as the source gave them, which had made them printable already.
            self.classes = tuple(bytes.fromhex(name).decode() for name in meta["classes"])
            self._counts: dict[str, int] = meta["shards"]  # of each split
            self._sizes = open_array(index, SHARD_SIZES)
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the index of {printable(root)} cannot be read ({error}); copy the folder again"
            ) from error
        count = len(self._sizes)
        for shard in np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int).tolist():
            if not self._as_packed(shard):
                raise UserError(
                    f"{printable(root)} lacks {self._name_of(shard)} as it was packed; "
                    "copy the folder again"
                )

    def files(self) -> FileTable:
        """The .tar files of both splits."""
        names = [self._name_of(shard).encode() for shard in range(len(self._sizes))]
        rows = [(name, *_size_and_time(os.path.join(self.root, name))) for name in names]
        return FileTable.of(self.root, rows)

    def shard_path(self, shard: int) -> bytes:
        """The .tar file; raises `BadPicture` when it is not the one that was packed."""
        if not self._as_packed(shard):
            raise BadPicture(f"{self._name_of(shard)} is not there as it was packed")
        return self._path_of(shard)

    def _as_packed(self, shard: int) -> bool:
        return _size_and_time(self._path_of(shard))[0] == int(self._sizes[shard])

    def _path_of(self, shard: int) -> bytes:
        return os.path.join(self.root, self._name_of(shard).encode())

    def _name_of(self, shard: int) -> str:
        for split, count in self._counts.items():
            if shard < count:
                return shard_name(split, shard)
            shard -= count
        raise ValueError(f"there is no shard {shard}")


def _size_and_time(path: bytes) -> tuple[int, int]:
    """Bytes of a file and when it was last changed (ns), (-1, 0) when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, 0)
