"""Pictures and masks as they lie in folders: which mask belongs to which picture."""

from __future__ import annotations

import os
from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.decoding.decode import BadPicture, decode_classes, upright_size
from beit.data.sources.file_table import FileTable, joined
from beit.data.sources.index import FolderSource
from beit.data.sources.part_names import TEST, TRAINING, VALIDATION
from beit.data.sources.path_names import encode_path, printable
from beit.errors import UserError

PairSplit = Literal["train", "val", "test"]
Folders = tuple[bytes, bytes]  # of the pictures, of the masks

SPLIT_NAMES: dict[PairSplit, tuple[bytes, ...]] = {
    "train": TRAINING,
    "val": VALIDATION,
    "test": TEST,
}
_LAYOUT = "segmentation reads images/train/a.jpg beside annotations/train/a.png"


class FolderPairs:
    """The pictures of one folder and, of the same names, the masks of another."""

    def __init__(self, folders: Folders, *, rescan: bool = False) -> None:
        images, annotations = folders
        self.images = FolderSource(images, "all", rescan=rescan)
        self._masks = FolderSource(annotations, "all", rescan=rescan)
        self.name = self.images.name
        self.fingerprint = f"{self.images.fingerprint}-{self._masks.fingerprint}"
        self._mask_places = _mask_places(self.images, self._masks)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Image.Image:
        """Decode picture `index`; raises `BadPicture`."""
        return self.images.read(index)

    def files(self) -> FileTable:
        """The pictures and the masks."""
        return joined([self.images.files(), self._masks.files()])

    def state(self) -> bytes:
        """What tells the files from others of their names and sizes, too: when they were changed.

        Masks of few numbers are often as long as others: of the same set, numbered otherwise.
        """
        times = (source.files().times.tobytes() for source in (self.images, self._masks))
        return b"".join((self.fingerprint.encode(), *times))

    def picture_size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture from its header; raises `BadPicture`."""
        return upright_size(self.images.read_bytes(index))

    def stored_mask(self, index: int) -> NDArray[np.uint8]:
        """The numbers of a mask as they lie on the disk, (H, W); raises `BadPicture`."""
        place = index if self._mask_places is None else int(self._mask_places[index])
        try:
            return decode_classes(self._masks.read_bytes(place))
        except BadPicture as error:
            raise type(error)(f"mask: {error.reason}") from None


def look_again(spec: str, split: PairSplit) -> None:
    """Bring up to date what is known of a split's files, without a look into the masks."""
    FolderPairs(pair_folders(encode_path(spec), split)[0], rescan=True)


def pair_folders(root: bytes, split: PairSplit) -> tuple[Folders, list[Folders]]:
    """The folders of a split, and those of the other splits that have masks.

    Raises:
        UserError: Pictures or masks are missing.
    """
    images, annotations = os.path.join(root, b"images"), os.path.join(root, b"annotations")
    if not os.path.isdir(root):
        raise UserError(f"there is no folder {printable(root)}")
    for folder, content in ((images, "pictures"), (annotations, "masks")):
        if not os.path.isdir(folder):
            raise UserError(f"there is no folder {printable(folder)} with the {content}; {_LAYOUT}")
    pictures = {one: _first_folder(images, one) for one in SPLIT_NAMES}
    masks = {one: _first_folder(annotations, one) for one in SPLIT_NAMES}
    ours, theirs = pictures[split], masks[split]
    if ours is None:
        wanted = " or ".join(name.decode() for name in SPLIT_NAMES[split])
        there = [printable(os.path.basename(path)) for path in pictures.values() if path]
        raise UserError(
            f"{printable(images)} has no folder {wanted}; there is: {', '.join(there) or 'none'}. "
            f"Put some pictures into images/{SPLIT_NAMES[split][0].decode()} and their masks into "
            f"annotations/{SPLIT_NAMES[split][0].decode()}"
        )
    if theirs is None:
        missing = printable(os.path.join(annotations, os.path.basename(ours)))
        raise UserError(
            f"the pictures of {printable(ours)} have no masks: there is no folder {missing}"
        )
    others = [(pictures[one], masks[one]) for one in SPLIT_NAMES if one != split]
    return (ours, theirs), [(one, other) for one, other in others if one and other]


def _first_folder(parent: bytes, split: PairSplit) -> bytes | None:
    paths = (os.path.join(parent, name) for name in SPLIT_NAMES[split])
    return next((path for path in paths if os.path.isdir(path)), None)


def _mask_places(images: FolderSource, masks: FolderSource) -> NDArray[np.int64] | None:
    """Where the mask of each picture stands; None = at the same place as the picture."""
    ours, theirs = _stems(images), _stems(masks)
    if ours == theirs:
        return None
    _refuse_lacking(images, masks, set(theirs), "mask")
    _refuse_lacking(masks, images, set(ours), "picture")
    twice = [stem for stem, count in Counter(ours + theirs).items() if count != 2]
    if twice:
        raise UserError(
            f"{images.name} holds {len(images)} files for {len(masks)} masks: several are called "
            f"{printable(twice[0])} and differ in their ending alone; keep one of them"
        )
    # Endings may change the order: a.k.jpg comes after a.jpg, but a.k.png before a.png.
    place_of = {stem: place for place, stem in enumerate(theirs)}
    return np.array([place_of[stem] for stem in ours])


def _refuse_lacking(one: FolderSource, other: FolderSource, there: set[bytes], what: str) -> None:
    lacking = [place for place, stem in enumerate(_stems(one)) if stem not in there]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(one)} files in {one.name} have no {what} of the same name in "
            f"{other.name}, first of all {one.identity(lacking[0])}: add what is missing or remove "
            "the file"
        )


def _stems(source: FolderSource) -> list[bytes]:
    return [os.path.splitext(source.path(index))[0] for index in range(len(source))]
