"""Which picture each worker is reading, so that a worker's death names a file."""

import multiprocessing
import os
import time
from functools import cached_property
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beit.data.sources.opening import Source

_TO_DIE = 2.0  # seconds until a process that went away counts as gone


class LoaderError(RuntimeError):
    """A loader worker died or hangs; the message names the picture it was reading."""


class Breadcrumbs:
    """A row of shared memory a worker: process, picture (-1 = none), since when (ns)."""

    def __init__(self, workers: int) -> None:
        self._shared = torch.full((max(1, workers), 3), -1, dtype=torch.int64)
        self._shared.share_memory_()  # type: ignore[no-untyped-call]

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = self._shared.numpy()
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {"_shared": self._shared}  # another process sees the same memory

    def reading(self, worker: int, index: int) -> None:
        """Worker `worker` begins to read picture `index`; -1 = it has begun to work."""
        self._rows[worker] = (os.getpid(), index, time.monotonic_ns())

    def done(self, worker: int) -> None:
        """Worker `worker` has what it wanted."""
        self._rows[worker, 1] = -1

    def died(self, source: Source, error: Exception) -> LoaderError:
        """Say which pictures the workers that are gone were reading."""
        deadline = time.monotonic() + _TO_DIE
        while not (gone := self._gone()) and time.monotonic() < deadline:
            time.sleep(0.02)
        pictures = self._named(source, gone)
        return LoaderError(
            f"a loader worker died while it was reading {pictures}; the system ended it (memory?) "
            f"or a library crashed on the picture ({_one_line(error)})"
        )

    def late(self, source: Source, seconds: float) -> LoaderError:
        """Say which pictures are being read; the one that takes longest comes first."""
        pictures = self._named(source, self._rows.tolist())
        return LoaderError(
            f"a loader worker has delivered nothing for {seconds:g} s; being read: {pictures}"
        )

    def end_workers(self) -> None:
        """Kill the workers; those that hang would outlive a polite request."""
        for process in self._alive():
            process.kill()
            process.join(_TO_DIE)

    def _alive(self) -> list[BaseProcess]:
        ours = {row[0] for row in self._rows.tolist()}
        return [child for child in multiprocessing.active_children() if child.pid in ours]

    def _gone(self) -> list[list[int]]:
        alive = {process.pid for process in self._alive()}
        return [row for row in self._rows.tolist() if row[0] >= 0 and row[0] not in alive]

    def _named(self, source: Source, rows: list[list[int]]) -> str:
        now = time.monotonic_ns()
        reading = sorted((row for row in rows if row[1] >= 0), key=lambda row: row[2])
        pictures = [
            f"{source.identity(index)} (worker {process}, for {(now - since) / 1e9:.1f} s)"
            for process, index, since in reading
        ]
        return ", ".join(pictures) or "no picture"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
