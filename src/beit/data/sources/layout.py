"""What the names of the pictures tell: which split a picture is in, and of which class.

A folder and a collection of tar shards are laid out alike, so both are read by the rules here:

* `train/` (or `training/`) makes `val/` (or `validation/`, `valid/`, `dev/`, `test/`, `testing/`,
  the first there is) the held-out part, and whatever else there is is left out;
* without one of these a keyed 5 % of the pictures is held out, chosen by a hash of each one's path,
  so that adding files does not move the others;
* the first folder below the split (or below the root) is the class.
"""

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beit.data.sources.cache import save_array, save_meta
from beit.data.sources.part_names import named_parts

HELD_OUT_SHARE = 0.05
HELD_OUT_MOST = 5_000
HELD_OUT_FROM = 20  # with this many pictures or fewer none is held out

ARRAYS = ("blob", "offsets", "sizes", "labels", "train", "val")  # of a layout that was saved

Integers = NDArray[np.int64]


def hash_of(name: bytes) -> int:
    """64 bits that depend on the name alone."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def held_out(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Choose the pictures of the keyed held-out part, True where chosen."""
    chosen = np.zeros(len(hashes), dtype=np.bool_)
    if len(hashes) > HELD_OUT_FROM:
        below = int((hashes < np.uint64(int(HELD_OUT_SHARE * 2**64))).sum())
        number = min(max(below, 1), HELD_OUT_MOST)
        chosen[np.argsort(hashes, kind="stable")[:number]] = True
    return chosen


@dataclass(frozen=True)
class Layout:
    """All that is known of the pictures without opening one; places count from 0 in byte order."""

    blob: NDArray[np.uint8]  # the relative paths, one after the other
    offsets: Integers  # (count + 1,)
    sizes: Integers  # (count,) bytes
    labels: NDArray[np.int32]  # (count,) -1 = none
    train: Integers  # places of the training part
    val: Integers
    classes: tuple[bytes, ...]
    fingerprint: str
    training: bytes | None  # the folder that is the training part, None = no folder is a part
    validation: bytes | None  # the folder that is measured on, None = held out by chance
    left_out: dict[bytes, int]  # pictures by folder, b"" = loose ones, that are in neither part

    def save(self, folder: Path, **more: object) -> None:
        """Write the arrays and the facts, with `more` facts beside them."""
        for name in ARRAYS:
            save_array(folder, name, getattr(self, name))
        facts = {
            "fingerprint": self.fingerprint,
            "classes": [name.hex() for name in self.classes],
            "training": None if self.training is None else self.training.hex(),
            "held_out": self.validation is None,
            "left_out": {name.hex(): count for name, count in self.left_out.items()},
        }
        save_meta(folder, facts | more)


class _Names:
    """Numbers for folder names, in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}

    def number(self, name: bytes | None) -> int:
        return -1 if name is None else self.numbers.setdefault(name, len(self.numbers))


class LayoutBuilder:
    """Takes relative paths one by one and keeps no Python object a picture."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._offsets = array("q", [0])
        self._sizes = array("q")
        self._hashes = array("Q")
        self._first = array("i")  # number of the first folder of the path, -1 = none
        self._second = array("i")
        self._first_names = _Names()
        self._second_names = _Names()

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, path: bytes, size: int) -> None:
        """Note a picture by its path (`/` between folders) and its size in bytes."""
        self._blob += path
        self._offsets.append(len(self._blob))
        self._sizes.append(size)
        self._hashes.append(hash_of(path))
        folders = path.split(b"/", 2)[:-1]
        first, second = (*folders, None, None)[:2]
        self._first.append(self._first_names.number(first))
        self._second.append(self._second_names.number(second))

    def finish(self) -> Layout:
        """Work out splits, classes and the fingerprint."""
        blob = np.frombuffer(bytes(self._blob), dtype=np.uint8)
        offsets, sizes = np.array(self._offsets, np.int64), np.array(self._sizes, np.int64)
        first, second = np.array(self._first, np.int32), np.array(self._second, np.int32)
        parts = named_parts(self._divided(first, second))
        train, val = self._split(first, *parts)
        below = (first, self._first_names) if parts[0] is None else (second, self._second_names)
        labels, classes = _labels(*below, np.concatenate([train, val]))
        digest = hashlib.blake2b(digest_size=16)
        for part in (offsets, blob, sizes):
            digest.update(part.data)
        left_out = self._left_out(first, train, val)
        fingerprint = digest.hexdigest()
        return Layout(
            blob, offsets, sizes, labels, train, val, classes, fingerprint, *parts, left_out
        )

    def _divided(self, first: NDArray[np.int32], second: NDArray[np.int32]) -> dict[bytes, bool]:
        """The folders at the top, and whether there are folders in each."""
        divided = np.zeros(len(self._first_names.numbers) + 1, np.bool_)  # the last serves -1
        divided[first[second >= 0]] = True
        return {name: bool(divided[number]) for name, number in self._first_names.numbers.items()}

    def _split(
        self, first: NDArray[np.int32], training: bytes | None, validation: bytes | None
    ) -> tuple[Integers, Integers]:
        if training is None:
            return self._hold_out(np.arange(len(first)))
        places = np.flatnonzero(first == self._first_names.numbers[training])
        if validation is None:
            return self._hold_out(places)
        return places, np.flatnonzero(first == self._first_names.numbers[validation])

    def _left_out(
        self, first: NDArray[np.int32], train: Integers, val: Integers
    ) -> dict[bytes, int]:
        if len(train) + len(val) == len(first):
            return {}
        left = np.ones(len(first), np.bool_)
        left[train] = left[val] = False
        counts = np.bincount(first[left] + 1, minlength=len(self._first_names.numbers) + 1).tolist()
        names = (b"", *self._first_names.numbers)
        return {name: count for name, count in zip(names, counts, strict=True) if count}

    def _hold_out(self, places: Integers) -> tuple[Integers, Integers]:
        chosen = held_out(np.array(self._hashes, np.uint64)[places])
        return places[~chosen], places[chosen]


def _labels(
    folder: NDArray[np.int32], names: _Names, used: Integers
) -> tuple[NDArray[np.int32], tuple[bytes, ...]]:
    """Number the classes that hold a picture of either split, in the order of their names."""
    by_number = {number: name for name, number in names.numbers.items()}
    present = sorted(by_number[int(number)] for number in np.unique(folder[used]) if number >= 0)
    label_of_number = np.full(len(by_number) + 1, -1, np.int32)  # the last place serves -1
    for label, name in enumerate(present):
        label_of_number[names.numbers[name]] = label
    return label_of_number[folder], tuple(present)
