"""Pictures that are handed over from Python: a source, an array, or a pair of either.

A pair is what is trained on and what is measured on. Of pictures that come as one, a keyed 5 % is
held out, as of a folder without parts, and none of 20 or fewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.decoding.decode import BadPicture
from beit.data.sources.arrays import ArraySource
from beit.data.sources.indexed import Split
from beit.data.sources.layout import hash_of, held_out
from beit.data.sources.protocol import Source
from beit.data.sources.subset import Subset
from beit.errors import UserError

_MEMBERS = ("name", "fingerprint", "classes", "__len__", "read", "identity", "label")
_WAYS = (
    "a name, an array (N, H, W, 3) of uint8, beit.pictures(array, labels), an object such as "
    "beit.data.sources.protocol.Source describes, or a pair of such: to train and to measure on"
)


class HeldOut(Subset):
    """Pictures that chance has held out of a source: a class may have none."""

    held_out = True


@dataclass(frozen=True)
class Handed:
    """What was handed over; as text its name."""

    train: Source
    validation: Source
    whole: Source | None  # both together, where they came as one

    def __str__(self) -> str:
        return str((self.whole or self.train).name)

    def part(self, split: Split) -> Source:
        """The pictures of a part.

        Raises:
            UserError: All are wanted of two.
        """
        if split != "all":
            return self.train if split == "train" else self.validation
        if self.whole is None:
            raise UserError(f"{self} came as a pair: name the part train or val, not all")
        return self.whole


def handed(given: object) -> Handed:
    """Look at what was handed over, and at its first picture.

    Raises:
        UserError: It is no source, no array of pictures and no pair of such.
    """
    if isinstance(given, (tuple, list)):
        if len(given) != 2:
            raise UserError(f"{len(given)} things were given as pictures: give {_WAYS}")
        if isinstance(given[1], np.ndarray) and given[1].ndim == 1:
            raise UserError(
                "pictures come with labels as beit.pictures(array, labels); a pair is of pictures "
                "to train and to measure on"
            )
        return Handed(_source(given[0]), _source(given[1]), None)
    whole = _source(given)
    places = np.arange(len(whole))
    chosen = held_out(np.array([hash_of(str(place).encode()) for place in places], np.uint64))
    train = Subset(whole, places[~chosen]) if chosen.any() else whole
    return Handed(train, HeldOut(whole, places[chosen]), whole)


def pictures(
    array: NDArray[np.uint8],
    labels: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    classes: Sequence[str] | None = None,
    name: str = "array",
) -> ArraySource:
    """Pictures held in memory, to be given as `data`.

        beit.classify("tiny", beit.pictures(array, labels), "runs/cls", init="runs/photos")

    Args:
        array: (N, H, W, 3) colours or (N, H, W) greys, uint8.
        labels: (N,) the number of each picture's class, -1 for none; without them none has one.
        classes: Their names; by default their numbers.
        name: What the pictures are called where they are spoken of.

    Raises:
        UserError: Shapes, types or numbers do not fit.
    """
    _refuse_other_arrays(array)
    numbers: NDArray[Any] = np.full(len(array), -1, np.int64)
    names: tuple[str, ...] = ()
    if labels is None and classes:
        raise UserError(f"{name} has classes but no labels: give the number of each picture's")
    if labels is not None:
        numbers = np.asarray(labels)
        if numbers.shape != (len(array),) or not np.issubdtype(numbers.dtype, np.integer):
            raise UserError(
                f"labels of {name} are {numbers.dtype} of shape {numbers.shape}: give an integer "
                f"for each of {len(array)} pictures"
            )
        most = int(numbers.max(initial=-1))
        names = tuple(classes or (str(number) for number in range(most + 1)))
        if most >= len(names) or numbers.min(initial=0) < -1:
            wrong = most if most >= len(names) else int(numbers.min())
            raise UserError(
                f"{name} has a label {wrong} and {len(names)} classes: labels count from 0, and -1 "
                "is none"
            )
    return ArraySource(name, array, numbers.astype(np.int64), names, np.arange(len(array)))


def _refuse_other_arrays(array: NDArray[np.uint8]) -> None:
    shape: tuple[int, ...] = getattr(array, "shape", ())
    dtype = getattr(array, "dtype", type(array).__name__)
    fits = isinstance(array, np.ndarray) and dtype == np.uint8
    if fits and len(shape) == 3 and shape[2] == 3:
        raise UserError(
            f"an array of shape {shape} would be greys that are 3 pixels wide: of one picture in "
            "colours make array[None], of a list of them np.stack(list)"
        )
    if fits and (len(shape) == 3 or len(shape) == 4 and shape[3] == 3) and 0 not in shape[1:]:
        return
    hint = ""
    if len(shape) == 4 and shape[1] == 3:
        hint = "; colours stand last: .transpose(0, 2, 3, 1)"
    elif str(dtype).startswith("float"):
        hint = "; of numbers from 0 to 1 make (255 * x).round().astype(np.uint8)"
    raise UserError(
        f"pictures as an array are (N, H, W, 3) or (N, H, W) of uint8, not {dtype} of shape "
        f"{tuple(shape)}{hint}"
    )


def _source(given: object) -> Source:
    if isinstance(given, np.ndarray):
        return pictures(given)
    kind = type(given).__name__
    missing = [name for name in _MEMBERS if not hasattr(given, name)]
    if missing:
        which = f" (it has no {', '.join(missing)})" if len(missing) < len(_MEMBERS) else ""
        raise UserError(f"{kind} is no kind of pictures{which}: give {_WAYS}")
    source = cast(Source, given)
    for name in ("name", "fingerprint"):
        if not isinstance(found := getattr(source, name), str) or not found:
            raise UserError(f"the {name} of a {kind} is {found!r}: it must be a text")
    if not isinstance(source.classes, tuple):
        raise UserError(f"the classes of a {kind} are {source.classes!r}: give a tuple of names")
    if len(source):
        _look_at_the_first(source, kind)
    return source


def _look_at_the_first(source: Source, kind: str) -> None:
    label, classes = source.label(0), len(source.classes)
    if not isinstance(label, (int, np.integer)) or not -1 <= label < classes:
        raise UserError(
            f"label(0) of a {kind} is {label!r} and it has {classes} classes: a label counts from "
            "0, and -1 is none"
        )
    if not isinstance(source.identity(0), str):
        raise UserError(f"identity(0) of a {kind} is {source.identity(0)!r}: it must be a text")
    try:
        picture = source.read(0)
    except BadPicture:
        return
    if not isinstance(picture, Image.Image) or picture.mode != "RGB":
        found = getattr(picture, "mode", type(picture).__name__)
        raise UserError(
            f"read(0) of a {kind} gives {found}: it must be a PIL.Image of mode RGB, as "
            'Image.fromarray(array).convert("RGB") is'
        )
