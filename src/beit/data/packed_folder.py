"""A folder that `beit data pack` made: shards, and an index that is mapped and never rebuilt."""

import os
import stat
from pathlib import Path

from beit.data.cache import load_meta
from beit.data.naming import printable
from beit.data.packed import Split
from beit.data.ranges import RangeSource
from beit.errors import UserError

INDEX, MANIFEST = "index", "meta.json"
VERSION = 1


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
            shards = [(str(name), int(size)) for name, size in meta["shards"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the index of {printable(root)} cannot be read ({error}); copy the folder again"
            ) from error
        if meta.get("version") != VERSION:
            raise UserError(f"{printable(root)} was packed by another version; pack it again")
        self._shards = [name for name, _ in shards]
        for name, size in shards:
            if _file_size(self._path_of(name)) != size:
                raise UserError(
                    f"{printable(root)} lacks {name} as it was packed; copy the folder again"
                )

    def shard_path(self, shard: int) -> bytes:
        """The .tar file."""
        return self._path_of(self._shards[shard])

    def _path_of(self, name: str) -> bytes:
        return os.path.join(self.root, name.encode())


def _file_size(path: bytes) -> int:
    """Bytes of a file, -1 when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1
