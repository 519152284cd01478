"""Pictures with a class for every pixel, in ADE20K's layout.

    SPEC/images/{train,val,test}/a.jpg        also training, validation, valid, testing
    SPEC/annotations/{train,val,test}/a.png   the class number of each pixel, 255 = unlabelled
    SPEC/classes.txt                          line i (from 0) = name of class i; may be absent
    SPEC/palette.txt                          line i = R G B to draw class i; may be absent

All that can be wrong with such a folder is said in one sentence before anything is trained.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.batch import IGNORED
from beit.data.decoding.decode import BadPicture
from beit.data.pairs.handed_pairs import handed_pairs
from beit.data.pairs.mask_survey import MaskSurveys, Survey
from beit.data.pairs.pair_files import FolderPairs, PairSplit, pair_folders
from beit.data.pairs.pair_texts import Palette, classes_of_file, palette_of_file
from beit.data.sources.file_table import FileTable
from beit.data.sources.handed import Handed
from beit.data.sources.opening import Data, Source
from beit.data.sources.path_names import encode_path, printable
from beit.errors import UserError

_LEAST_CLASSES = 2


class PairSource(Source, Protocol):
    """A source of pictures that has a mask for each."""

    palette: Palette | None  # a colour a class
    pixels: tuple[int, ...]  # of each class, in all masks together
    bad: tuple[tuple[int, str], ...]  # places that cannot be read, picture or mask, and why

    def mask(self, index: int, /) -> NDArray[np.uint8]:
        """The class of each pixel, (H, W), 255 = ignored; raises `BadPicture`."""


class LabelledPairs:
    """Pictures and masks with the numbers of the masks made into classes; a `PairSource`."""

    def __init__(
        self,
        pairs: FolderPairs,
        classes: tuple[str, ...],
        palette: Palette | None,
        found: Survey,
        shift: int,
    ) -> None:
        """Give the numbers their meaning.

        Args:
            pairs: What there is.
            classes: The names.
            palette: A colour each, None = none are known.
            found: What a look at every mask has shown.
            shift: The stored number of class 0; smaller numbers are ignored.
        """
        self.name = pairs.name
        self.classes = classes
        self.palette = palette
        self.pixels = tuple(int(count) for count in found.counts[shift : shift + len(classes)])
        self.bad = found.bad
        self.fingerprint = f"{pairs.fingerprint}-{shift}-{len(classes)}"
        self._pairs = pairs
        self._shift = shift

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int, /) -> Image.Image:
        """Decode picture `index`; raises `BadPicture`."""
        return self._pairs.read(index)

    def identity(self, index: int, /) -> str:
        """The picture's path in its folder, as one line of printable text."""
        return self._pairs.images.identity(index)

    def files(self) -> FileTable:
        """The pictures and the masks."""
        return self._pairs.files()

    def label(self, index: int, /) -> int:
        """-1: the pixels have classes, the picture has none."""
        return -1

    def mask(self, index: int, /) -> NDArray[np.uint8]:
        """The class of each pixel, (H, W), 255 = ignored; raises `BadPicture`."""
        stored = self._pairs.stored_mask(index)
        unknown = ~self._known[stored]
        if unknown.any():
            raise BadPicture(f"mask: unknown value {stored[unknown].max()}")
        return self._class_of[stored]

    @cached_property
    def _class_of(self) -> NDArray[np.uint8]:
        """(256,) the class of each stored number."""
        table = np.full(256, IGNORED, np.uint8)
        numbers = range(len(self.classes))
        table[self._shift : self._shift + len(numbers)] = numbers
        return table

    @cached_property
    def _known(self) -> NDArray[np.bool_]:
        """(256,) whether a stored number may occur."""
        return known_numbers(len(self.classes), self._shift)


def known_numbers(classes: int, shift: int) -> NDArray[np.bool_]:
    """Which stored numbers, (256,), may occur in masks of so many classes."""
    numbers = np.arange(256)
    return np.asarray((numbers < shift + classes) | (numbers == IGNORED))


def open_pairs(
    spec: Data,
    split: PairSplit,
    *,
    reduce_zero_label: bool = False,
    workers: int = 0,
    rescan: bool = False,
) -> PairSource:
    """Open a folder of pictures and masks, and look at every mask once (later: in the cache).

    Without `classes.txt` the largest number in the masks of all splits says how many classes there
    are, so that all splits agree.

    Args:
        spec: A folder in ADE20K's layout (see above), or what was handed over.
        split: Which part.
        reduce_zero_label: Number 0 is "unlabelled" and class k is stored as k + 1, as in ADE20K.
        workers: Processes that look at the masks.
        rescan: Look at every file, to notice those overwritten in place.

    Raises:
        UserError: A folder is missing; names, numbers or sizes of pictures and masks differ; a mask
            holds colours or an unknown number; there is no class, or a single one.
    """
    if isinstance(spec, Handed):
        return handed_pairs(spec, split)
    surveys = MaskSurveys(workers, anew=rescan)
    try:
        return _open_pairs(encode_path(spec), split, int(reduce_zero_label), surveys, rescan)
    except UserError:
        if not surveys.remembered:
            raise
    # What was remembered will not do; perhaps a file was mended in place since.
    surveys = MaskSurveys(workers, anew=True)
    return _open_pairs(encode_path(spec), split, int(reduce_zero_label), surveys, True)


def _open_pairs(
    root: bytes, split: PairSplit, shift: int, surveys: MaskSurveys, rescan: bool
) -> PairSource:
    folders, others = pair_folders(root, split)
    chosen = FolderPairs(folders, rescan=rescan)
    names = classes_of_file(os.path.join(root, b"classes.txt"))
    if names is None:
        several = [chosen, *(FolderPairs(other, rescan=rescan) for other in others)]
        names = _counted_classes(several, shift, surveys)
    if len(names) < _LEAST_CLASSES:
        raise UserError(
            f"{printable(root)} knows a single class ({names[0]}): there is nothing to tell apart; "
            "give the rest of each picture a class too (255 means: not to be counted)"
        )
    if len(names) + shift > IGNORED:
        raise UserError(f"{len(names)} classes do not fit beside 0 and 255 in 8-bit masks")
    found = surveys.of(chosen)
    _refuse_numbers(chosen, found, len(names), shift)
    palette = palette_of_file(os.path.join(root, b"palette.txt"), len(names))
    return LabelledPairs(chosen, names, palette, found, shift)


def check_pairs(train: PairSource, validation: PairSource, bad_share: float = 1.0) -> None:
    """Refuse a pair of splits that cannot be trained and judged together.

    Args:
        train: What is learned from.
        validation: What is measured on.
        bad_share: How many of the training pictures may be unreadable.

    Raises:
        UserError: A single training picture, too many that cannot be read, a single class in all
            the masks that are learned from, or classes that differ.
    """
    if len(train.bad) > bad_share * len(train):
        index, reason = train.bad[0]
        raise UserError(
            f"{len(train.bad)} of {len(train)} pictures of {train.name} cannot be read, more than "
            f"the {bad_share:.1%} allowed, {train.identity(index)} first ({reason}): mend or "
            "remove them with their masks, or raise --data.bad_share"
        )
    if len(train) < 2:
        raise UserError(f"{train.name} holds a single picture; training needs two or more")
    held = [name for name, count in zip(train.classes, train.pixels, strict=True) if count]
    if len(held) == 1:
        raise UserError(
            f"the masks of {train.name} hold a single class ({held[0]}) of the "
            f"{len(train.classes)} that there are: there is nothing to tell apart; add pictures of "
            "others, or their masks"
        )
    if train.classes != validation.classes:
        differing = set(train.classes) ^ set(validation.classes)
        first = min(differing) if differing else "their order"
        raise UserError(
            f"the classes of {train.name} ({len(train.classes)}) and {validation.name} "
            f"({len(validation.classes)}) differ, first in: {first}; give both the same classes.txt"
        )


def _counted_classes(
    several: Sequence[FolderPairs], shift: int, surveys: MaskSurveys
) -> tuple[str, ...]:
    """Make up names for the numbers in the masks of all splits.

    Numbers of which less than half are used are more likely greys than classes.
    """
    counts = np.sum([surveys.of(pairs).counts for pairs in several], axis=0)
    used = np.flatnonzero(counts[shift:IGNORED])
    number = int(used.max(initial=-1)) + 1
    if len(used) == 0:
        raise UserError(f"the masks of {several[0].name} hold no class at all: {_empty(shift)}")
    if 2 * len(used) < number:
        some = ", ".join(str(value + shift) for value in used[:5])
        raise UserError(
            f"the masks of {several[0].name} hold the numbers {some}, ..., which do not look like "
            f"classes counted from {shift}: name all classes, {number} or more, in classes.txt "
            "by their numbers, a line each, or number them without gaps"
        )
    return tuple(f"class {place}" for place in range(number))


def _refuse_numbers(pairs: FolderPairs, found: Survey, classes: int, shift: int) -> None:
    """Refuse masks that hold an unknown number, or no class."""
    unknown = np.flatnonzero((found.counts > 0) & ~known_numbers(classes, shift))
    if len(unknown):
        value = int(unknown[0])
        reducing = "" if shift else "; where 0 stands for unlabelled, set reduce_zero_label"
        raise UserError(
            f"the mask of {pairs.images.identity(int(found.first[value]))} in {pairs.name} holds "
            f"the unknown value {value}: {classes} classes are stored as {shift} to "
            f"{classes - 1 + shift}, and 255 is unlabelled{reducing}"
        )
    if not found.counts[shift : shift + classes].any():
        raise UserError(f"the masks of {pairs.name} hold no class at all: {_empty(shift)}")


def _empty(shift: int) -> str:
    return f"every pixel is {'0 or ' if shift else ''}255 (unlabelled)"
