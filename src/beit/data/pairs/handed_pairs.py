"""Pictures with masks that are handed over from Python."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.batch import IGNORED
from beit.data.decoding.decode import BadPicture
from beit.data.pairs.pair_texts import Palette
from beit.data.sources.handed import Handed
from beit.errors import UserError


class HandedPairs:
    """A source that has a mask for each picture; a `beit.data.pairs.pairs.PairSource`.

    Every mask is looked at once, unless the source says itself how many pixels each class has.
    """

    def __init__(self, source: Any) -> None:
        """Look at the masks.

        Raises:
            UserError: One is no array (H, W) of uint8, or holds an unknown number.
        """
        self.name: str = source.name
        self.fingerprint: str = source.fingerprint
        self.classes: tuple[str, ...] = source.classes
        self.palette: Palette | None = getattr(source, "palette", None)
        self._source = source
        self.bad: tuple[tuple[int, str], ...] = getattr(source, "bad", ())
        self.pixels: tuple[int, ...] = getattr(source, "pixels", None) or self._counted()

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int, /) -> Image.Image:
        """What the source reads."""
        picture: Image.Image = self._source.read(index)
        return picture

    def identity(self, index: int, /) -> str:
        """What the source calls it."""
        return str(self._source.identity(index))

    def label(self, index: int, /) -> int:
        """-1: the pixels have classes, the picture has none."""
        return -1

    def mask(self, index: int, /) -> NDArray[np.uint8]:
        """The class of each pixel, (H, W), 255 = ignored."""
        mask: NDArray[np.uint8] = self._source.mask(index)
        return mask

    def _counted(self) -> tuple[int, ...]:
        counts, bad = np.zeros(256, np.int64), []
        for index in range(len(self)):
            try:
                mask = self.mask(index)
            except BadPicture as error:
                bad.append((index, error.reason))
                continue
            found = getattr(mask, "dtype", type(mask)), getattr(mask, "ndim", 0)
            if found != (np.uint8, 2):
                raise UserError(
                    f"the mask of {self.identity(index)} in {self.name} is {found[0]} of "
                    f"{found[1]} dimensions: it must be a numpy array (H, W) of uint8"
                )
            counts += np.bincount(mask.reshape(-1), minlength=256)
            unknown = np.flatnonzero(counts[len(self.classes) : IGNORED])
            if len(unknown):
                raise UserError(
                    f"the mask of {self.identity(index)} in {self.name} holds the number "
                    f"{unknown[0] + len(self.classes)}: there are {len(self.classes)} classes, "
                    "counted from 0, and 255 is unlabelled"
                )
        self.bad = self.bad or tuple(bad)
        return tuple(counts[: len(self.classes)].tolist())


def handed_pairs(given: Handed, split: str) -> HandedPairs:
    """The pictures of a part with their masks.

    Raises:
        UserError: They came as one, there is no such part, or they have no masks.
    """
    if given.whole is not None:
        raise UserError(
            f"{given} came as one: give a pair of sources with masks, to train and to measure on"
        )
    if split not in ("train", "val"):
        raise UserError(f"{given} came as a pair: it has the parts train and val, no {split}")
    source: Any = given.train if split == "train" else given.validation
    if not callable(getattr(source, "mask", None)):
        raise UserError(
            f"{source.name} has no masks: give it mask(index), the class of each pixel (H, W) in "
            "uint8, 255 where there is none"
        )
    if len(source.classes) < 2:
        raise UserError(f"{source.name} has {len(source.classes)} classes: name two or more")
    return HandedPairs(source)
