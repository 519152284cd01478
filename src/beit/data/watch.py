"""Which picture each worker is reading, so that a worker's death names a file."""

import os
import re
import time

import numpy as np
import torch
from numpy.typing import NDArray

from beit.data.sources import Source


class LoaderError(RuntimeError):
    """A loader worker died or hangs; the message names the picture it was reading."""


class Breadcrumbs:
    """A row of shared memory a worker: process, picture (-1 = none), since when (ns)."""

    def __init__(self, workers: int) -> None:
        self._shared = torch.full((max(1, workers), 3), -1, dtype=torch.int64)
        self._shared.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def _rows(self) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = self._shared.numpy()
        return rows

    def reading(self, worker: int, index: int) -> None:
        """Worker `worker` begins to read picture `index`."""
        self._rows[worker] = (os.getpid(), index, time.monotonic_ns())

    def done(self, worker: int) -> None:
        """Worker `worker` has what it wanted."""
        self._rows[worker, 1] = -1

    def explain(self, error: Exception, source: Source) -> LoaderError:
        """Say of torch's error which pictures were being read."""
        text = " ".join(str(error).split())
        processes = {int(number) for number in re.findall(r"\d+", text)}
        suspects = [row for row in self._rows.tolist() if row[1] >= 0]
        named = [row for row in suspects if row[0] in processes] or suspects
        named.sort(key=lambda row: row[2])  # the one that has been at it longest first
        now = time.monotonic_ns()
        pictures = ", ".join(
            f"{source.identity(index)} (worker {process}, for {(now - since) / 1e9:.1f} s)"
            for process, index, since in named
        )
        return LoaderError(f"{text} It was reading: {pictures or 'no picture'}.")
