"""One look at every mask before a run: which class numbers there are, and what does not fit.

The result is kept in the cache under the fingerprint of the files and their times, unless a mask
does not fit its picture: a mended file is to be looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from beit.data.decoding.decode import BadPicture, NoClasses
from beit.data.pairs.pair_files import FolderPairs
from beit.data.reading.fetch import Fetching, WatchedReader, fetch
from beit.data.sources.cache import (
    cache_key,
    current_generation,
    load_meta,
    open_array,
    publish_generation,
    save_array,
    save_meta,
)
from beit.errors import UserError

_VERSION = 2
_AT_ONCE = 16
_VALUES = 256  # a mask's pixel is a byte


@dataclass(frozen=True)
class Survey:
    """Which numbers the masks hold."""

    counts: NDArray[np.int64]  # (256,) pixels of each number
    first: NDArray[np.int64]  # (256,) the first picture with that number, -1 = none
    bad: tuple[tuple[int, str], ...] = ()  # pictures or masks that cannot be read, and why


@dataclass
class _Tally:
    """What a run of pictures has shown."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_VALUES, np.int64))
    first: NDArray[np.int64] = field(default_factory=lambda: np.full(_VALUES, -1, np.int64))
    sizes: list[tuple[int, tuple[int, int], tuple[int, int]]] = field(default_factory=list)
    colours: list[tuple[int, str]] = field(default_factory=list)  # masks that hold no numbers
    bad: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: _Tally) -> None:
        """Take in what a later run of pictures has shown."""
        self.counts += other.counts
        self.first = np.where(self.first < 0, other.first, self.first)
        self.sizes += other.sizes
        self.colours += other.colours
        self.bad += other.bad


@dataclass
class _Looks(Dataset[_Tally]):
    """Maps a run of places to what was seen there."""

    pairs: FolderPairs
    reader: WatchedReader

    def __getitem__(self, where: range) -> _Tally:
        """Look at these pictures and their masks."""
        tally = _Tally()
        for index in where:
            try:
                with self.reader.watching(index):
                    self._look(index, tally)
            except NoClasses as error:
                tally.colours.append((index, error.reason))
            except BadPicture as error:
                tally.bad.append((index, error.reason))
        return tally

    def _look(self, index: int, tally: _Tally) -> None:
        mask = self.pairs.stored_mask(index)
        counts = np.bincount(mask.ravel(), minlength=_VALUES)
        tally.counts += counts
        tally.first[(counts > 0) & (tally.first < 0)] = index
        height, width = mask.shape
        picture = self.pairs.picture_size(index)
        if picture != (height, width):
            tally.sizes.append((index, picture, (height, width)))


class MaskSurveys:
    """Surveys, made or remembered."""

    def __init__(self, workers: int = 0, *, anew: bool = False) -> None:
        """Prepare to look.

        Args:
            workers: Processes that look at masks.
            anew: Take nothing from the cache.
        """
        self._workers = workers
        self._anew = anew
        self.remembered = False  # whether a survey came from the cache

    def of(self, pairs: FolderPairs) -> Survey:
        """Count the numbers in the masks, or take the counts of the last time.

        Raises:
            UserError: A mask has another size than its picture, or holds colours, or none of them
                can be read.
        """
        key = cache_key("masks", pairs.state())
        known = None if self._anew else _known(key)
        if known is not None:
            self.remembered = True
            return known
        found = _look_at_all(pairs, self._workers)

        def write(folder: Path) -> None:
            save_array(folder, "counts", found.counts)
            save_array(folder, "first", found.first)
            save_meta(folder, {"version": _VERSION, "bad": found.bad})

        publish_generation(key, write)
        return found


def _known(key: str) -> Survey | None:
    folder = current_generation(key)
    try:
        meta = {} if folder is None else load_meta(folder)
        if folder is None or meta.get("version") != _VERSION:
            return None
        bad = tuple((int(index), str(reason)) for index, reason in meta["bad"])
        return Survey(open_array(folder, "counts"), open_array(folder, "first"), bad)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _look_at_all(pairs: FolderPairs, workers: int) -> Survey:
    total = _Tally()
    for tally in _tallies(pairs, workers):
        total.add(tally)
    _refuse(pairs, total)
    return Survey(total.counts, total.first, tuple(total.bad))


def _tallies(pairs: FolderPairs, workers: int) -> Iterator[_Tally]:
    count = len(pairs.images)
    where = [range(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE)]
    how = Fetching(min(workers, len(where)))
    reader = WatchedReader(pairs.images, how.workers)
    return fetch(_Looks(pairs, reader), where, reader, how)


def _refuse(pairs: FolderPairs, tally: _Tally) -> None:
    name = pairs.images.identity
    if tally.colours:
        index, reason = tally.colours[0]
        what = reason.removeprefix("mask: ")
        raise UserError(
            f"the mask of {name(index)} in {pairs.name} holds {what}{_more(tally.colours)}: a "
            "mask is a grey or palette PNG whose pixel values are 0, 1, 2, ... and 255 for "
            "unlabelled pixels"
        )
    if tally.sizes:
        index, picture, mask = tally.sizes[0]
        raise UserError(
            f"{name(index)} in {pairs.name} is {picture[1]} x {picture[0]} pixels and its mask "
            f"{mask[1]} x {mask[0]}{_more(tally.sizes)}: bring the mask to the picture's size "
            "without interpolation, or remove both"
        )
    if len(tally.bad) == len(pairs.images):
        index, reason = tally.bad[0]
        raise UserError(
            f"no picture of {pairs.name} can be read together with its mask; the first is "
            f"{name(index)} ({reason}); masks are PNG files"
        )


def _more(found: list[tuple[int, str]] | list[tuple[int, tuple[int, int], tuple[int, int]]]) -> str:
    return f" (and {len(found) - 1} more such)" if len(found) > 1 else ""
