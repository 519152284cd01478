"""Pictures that are ranges of bytes in a few large files, read where they lie.

`pread` moves no file position, so threads and forked workers do not disturb one another.
"""

import os
from functools import cached_property
from typing import Any

from beit.data.decoding.decode import FILE_LIMIT, BadPicture
from beit.data.sources.indexed import IndexedSource

_OPEN_FILES = 64  # file descriptors a process keeps


class RangeSource(IndexedSource):
    """A packed source whose arrays `shard` and `start` say where each picture begins."""

    def shard_path(self, shard: int) -> bytes:
        """Where shard number `shard` is."""
        raise NotImplementedError

    def read_bytes(self, index: int) -> bytes:
        """The picture's bytes; raises `BadPicture`."""
        place, size = self.place(index), self.size(index)
        if size > FILE_LIMIT:
            raise BadPicture(f"file of {size} bytes, more than {FILE_LIMIT}")
        shard = int(self._array("shard")[place])
        try:
            data = os.pread(self._descriptor(shard), size, int(self._array("start")[place]))
        except OSError as error:
            raise BadPicture(f"cannot be read ({error.strerror})") from None
        if len(data) < size:
            raise BadPicture("truncated")
        return data

    def _descriptor(self, shard: int) -> int:
        if shard not in self._descriptors:
            if len(self._descriptors) >= _OPEN_FILES:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[shard] = os.open(self.shard_path(shard), os.O_RDONLY)
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
