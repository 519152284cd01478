"""Looking at data before a run is spent on it."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from beit.data.decoding.decode import BadPicture
from beit.data.reading.fetch import Fetching, WatchedReader, fetch
from beit.data.sources.opening import Source, labels_of

_AT_ONCE = 32
_SAMPLE = 200
_DARK = 64  # of 255: what white is of a camera of 14 bits, in a file of 16

_Extrema = tuple[tuple[int, int], ...]  # least and most of each colour


@dataclass(frozen=True)
class Bad:
    """A picture that cannot be read."""

    path: str
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What reading every picture has shown."""

    name: str
    pictures: int  # good and bad
    bad: tuple[Bad, ...]
    duplicates: tuple[tuple[str, ...], ...]  # groups of pictures whose pixels are the same
    smallest: tuple[int, int]  # height and width of the smallest side's picture
    largest: tuple[int, int]  # of the most pixels
    dark: tuple[int, str]  # how many good ones have no bright pixel, and the first of them


@dataclass(frozen=True)
class Info:
    """What a source holds."""

    name: str
    fingerprint: str
    pictures: int
    classes: dict[str, int]  # pictures a class; empty = unlabelled
    unlabelled: int
    sampled: int  # pictures read for the sizes
    bad_in_sample: int
    height: tuple[int, int, int]  # least, median, most in the sample; zeros when none was good
    width: tuple[int, int, int]
    dark: tuple[int, str]  # how many in the sample have no bright pixel, and the first of them


@dataclass(frozen=True)
class _Seen:
    index: int
    reason: str  # empty = good
    size: tuple[int, int] = (0, 0)
    dark: bool = False
    digest: bytes = b""


@dataclass
class _Looks(Dataset[list[_Seen]]):
    """Maps a run of places to what was seen there."""

    reader: WatchedReader
    places: Sequence[int]
    digests: bool

    def __getitem__(self, where: range) -> list[_Seen]:
        """Read these pictures."""
        return [self._look(self.places[place]) for place in where]

    def _look(self, index: int) -> _Seen:
        try:
            image = self.reader.read(index)
        except BadPicture as error:
            return _Seen(index, error.reason)
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest() if self.digests else b""
        dark = max(most for _, most in cast(_Extrema, image.getextrema())) <= _DARK
        return _Seen(index, "", (image.height, image.width), dark, digest)


def check(source: Source, workers: int = 0, *, duplicates: bool = False) -> CheckReport:
    """Read every picture and list the bad ones.

    Args:
        source: The pictures; no file is touched.
        workers: Processes.
        duplicates: Look also for pictures with the same pixels (16 bytes of memory a picture).
    """
    bad: list[Bad] = []
    groups: dict[bytes, list[int]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    dark: list[int] = []
    for seen in _look_at(source, range(len(source)), workers, digests=duplicates):
        if seen.reason:
            bad.append(Bad(source.identity(seen.index), seen.reason))
            continue
        sizes[seen.size] += 1
        dark += [seen.index] if seen.dark else []
        if duplicates:
            groups.setdefault(seen.digest, []).append(seen.index)
    return CheckReport(
        name=source.name,
        pictures=len(source),
        bad=tuple(bad),
        duplicates=tuple(
            tuple(source.identity(index) for index in group)
            for group in groups.values()
            if len(group) > 1
        ),
        smallest=min(sizes, key=min, default=(0, 0)),
        largest=max(sizes, key=lambda size: size[0] * size[1], default=(0, 0)),
        dark=_told(source, dark),
    )


def info(source: Source) -> Info:
    """Count pictures and classes, and measure an evenly spread sample of 200 pictures."""
    places = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).round().astype(int)).tolist()
    if len(source) == 0:
        places = []
    seen = list(_look_at(source, places, workers=0, digests=False))
    good = np.array([one.size for one in seen if not one.reason]).reshape(-1, 2)
    labels = labels_of(source)
    counts = np.bincount(labels[labels >= 0], minlength=len(source.classes)).tolist()
    return Info(
        name=source.name,
        fingerprint=source.fingerprint,
        pictures=len(source),
        classes={name: counts[label] for label, name in enumerate(source.classes)},
        unlabelled=int((labels < 0).sum()),
        sampled=len(seen),
        bad_in_sample=len(seen) - len(good),
        height=_spread(good[:, 0]),
        width=_spread(good[:, 1]),
        dark=_told(source, [one.index for one in seen if one.dark]),
    )


def _look_at(
    source: Source, places: Sequence[int], workers: int, *, digests: bool
) -> Iterator[_Seen]:
    where = [
        range(start, min(start + _AT_ONCE, len(places)))
        for start in range(0, len(places), _AT_ONCE)
    ]
    how = Fetching(min(workers, len(where)))
    reader = WatchedReader(source, how.workers)
    for several in fetch(_Looks(reader, places, digests), where, reader, how):
        yield from several


def _told(source: Source, dark: Sequence[int]) -> tuple[int, str]:
    return len(dark), source.identity(dark[0]) if dark else ""


def _spread(values: NDArray[np.int64]) -> tuple[int, int, int]:
    if len(values) == 0:
        return 0, 0, 0
    return int(values.min()), int(np.median(values)), int(values.max())
