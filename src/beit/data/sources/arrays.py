"""Data sets that are known by name and come with a dependency."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.sources.indexed import Split
from beit.randomness import KeyedPermutation

_DIGITS_HELD_OUT = 0.2
_DIGITS_KEY = 0  # of the permutation that chooses the held-out scans


class ArraySource:
    """Pictures held in memory as one array, (count, H, W) or (count, H, W, 3) uint8."""

    def __init__(
        self,
        name: str,
        pictures: NDArray[np.uint8],
        labels: NDArray[np.int64],
        classes: Sequence[str],
        places: NDArray[np.int64],
    ) -> None:
        """Keep the pictures at `places`; identities go on counting in the whole set."""
        self.name = name
        self.classes = tuple(classes)
        self._pictures, self._labels, self._places = pictures[places], labels[places], places
        digest = hashlib.blake2b(digest_size=16)
        for part in (places.astype(np.int64), self._pictures, self._labels):
            digest.update(np.ascontiguousarray(part).tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> Image.Image:
        """Picture `index` as RGB."""
        return Image.fromarray(self._pictures[index]).convert("RGB")

    def identity(self, index: int) -> str:
        """Name and number in the whole set."""
        return f"{self.name}/{int(self._places[index])}"

    def label(self, index: int) -> int:
        """The number of the class."""
        return int(self._labels[index])

    def labels(self) -> NDArray[np.int64]:
        """The class of every picture."""
        return self._labels.astype(np.int64)


def digits(split: Split) -> ArraySource:
    """scikit-learn's handwritten digits: 1,797 scans of 8 x 8, ten classes, 20 % held out."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    pictures = np.rint(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    held_out = stratified(labels, _DIGITS_HELD_OUT)
    wanted = {"train": ~held_out, "val": held_out, "all": np.ones_like(held_out)}[split]
    names = [str(digit) for digit in range(10)]
    return ArraySource("digits", pictures, labels, names, np.flatnonzero(wanted))


def stratified(labels: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Choose the same share of every class by a fixed permutation; True = held out."""
    chosen = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        order = KeyedPermutation(len(places), _DIGITS_KEY)(np.arange(len(places)))
        chosen[places[order[: round(share * len(places))]]] = True
    return chosen
