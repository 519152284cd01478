"""What there is to read: one line of text becomes a source of pictures."""

import difflib
import os
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.index import FolderSource, NoPicture
from beit.data.naming import encode_path, printable
from beit.data.packed import Split
from beit.data.packed_folder import PackedFolder, is_packed_folder
from beit.data.shards import ShardSource, find_shards, other_folder
from beit.errors import UserError

__all__ = ["HasBytes", "Source", "Split", "labels_of", "open_parts", "open_source"]

_SCHEMES = ("digits", "torchvision", "hf")
_FEW = 20_000  # files that are looked at in no time
_COMPRESSED = (b".tar.gz", b".tgz", b".tar.bz2", b".tar.xz", b".tar.zst", b".zip")


class Source(Protocol):
    """A numbered set of pictures, the same numbers for the same data."""

    name: str
    fingerprint: str  # changes when a picture is added, removed, renamed or changes its size;
    # `beit.data.file_table` tells which, and notices edits that leave the size as it was
    classes: tuple[str, ...]  # empty = unlabelled

    def __len__(self) -> int:
        """How many pictures there are."""

    def read(self, index: int, /) -> Image.Image:
        """Picture `index` as RGB; raises `beit.data.decode.BadPicture` with the reason."""

    def identity(self, index: int, /) -> str:
        """What the picture is called, one line of printable text."""

    def label(self, index: int, /) -> int:
        """The number of the picture's class, -1 = none."""


@runtime_checkable
class HasBytes(Protocol):
    """A source of files: what it reads is what `beit.data.decode` makes of their content."""

    def read_bytes(self, index: int, /) -> bytes:
        """The file's content; raises `BadPicture`."""


@runtime_checkable
class KnowsLabels(Protocol):
    """A source that has all its labels at hand."""

    def labels(self) -> NDArray[np.int64]:
        """The class of every picture, (N,), -1 = none."""


def labels_of(source: Source) -> NDArray[np.int64]:
    """The class of every picture, (N,), -1 = none; without reading a picture where that can be."""
    if isinstance(source, KnowsLabels):
        return source.labels()
    return np.array([source.label(index) for index in range(len(source))], np.int64)


def open_source(spec: str, split: Split, *, rescan: bool = False) -> Source:
    """Open a source.

    Args:
        spec: A folder (flat, nested, a folder a class; in ADE20K's layout its `images/` is taken;
            one that `beit data pack` made), a .tar file or a folder of them, `digits`,
            `torchvision:NAME[:ROOT]`, or `hf:NAME`.
        split: "train", "val", or "all". Without folders or files that say so, 5 % are "val"; none
            when there are 20 pictures or fewer.
        rescan: Look at every file, and list every shard anew, to notice those overwritten in place.

    Raises:
        UserError: There is no such thing, or no picture in it.
    """
    scheme, _, rest = spec.partition(":")
    path = encode_path(spec)
    if os.path.lexists(path):
        return _open_path(path, split, rescan=rescan)
    if scheme == "digits" and not rest:
        from beit.data.named import digits

        return digits(split)
    if scheme == "torchvision" and rest:
        from beit.data.torchvision_sets import torchvision_source

        return torchvision_source(rest, split)
    if scheme == "hf" and rest:
        from beit.data.hub import hub_source

        return hub_source(rest, split)
    raise UserError(_unknown(spec, scheme))


def open_parts(spec: str, *, rescan: bool = False) -> tuple[Source, Source]:
    """Open the pictures to train on and those to measure on, as `open_source` does.

    Args:
        spec: As for `open_source`.
        rescan: Look at every file of a folder; where there are few that is done anyway. Shards are
            looked at whenever they are opened.

    Raises:
        UserError: There is no such thing, or no picture in it.
    """
    train = open_source(spec, "train")
    if isinstance(train, FolderSource) and (rescan or len(train) <= _FEW):
        train = open_source(spec, "train", rescan=True)
    return train, open_source(spec, "val")


def _open_path(path: bytes, split: Split, *, rescan: bool) -> Source:
    if os.path.isdir(path):
        images, annotations = os.path.join(path, b"images"), os.path.join(path, b"annotations")
        if os.path.isdir(images) and os.path.isdir(annotations):
            path = images
        if is_packed_folder(path):
            return PackedFolder(path, split)
        shards = find_shards(path)
        if shards:
            return ShardSource(path, shards, split, rescan=rescan)
        return _open_folder(path, split, rescan=rescan)
    if path.lower().endswith(b".tar") and os.path.isfile(path):
        return ShardSource(path, find_shards(path), split, rescan=rescan)
    if path.lower().endswith(_COMPRESSED):
        raise UserError(f"{printable(path)} is compressed; unpack it, or make it a plain .tar file")
    raise UserError(f"{printable(path)} is neither a folder nor a .tar file")


def _open_folder(path: bytes, split: Split, *, rescan: bool) -> Source:
    try:
        return FolderSource(path, split, rescan=rescan)
    except NoPicture:
        other = other_folder(path)
        if other is None:
            raise
        raise UserError(
            f"the .tar files in {printable(path)} are not read as shards because of the folder "
            f"{other} beside them, in which there is no picture; move {other} elsewhere"
        ) from None


def _unknown(spec: str, scheme: str) -> str:
    shown = printable(os.fsencode(spec))
    ways = "a folder, a .tar file, digits, torchvision:NAME or hf:NAME"
    if scheme in _SCHEMES and scheme != "digits":
        return f"{shown} names no data set; write {scheme}:NAME"
    near = difflib.get_close_matches(scheme, _SCHEMES, n=1)
    if near and (":" in spec or os.sep not in spec):
        return f"there is no folder {shown}; did you mean {near[0]}? (data is {ways})"
    parent = _nearest_name(spec)
    hint = f"; did you mean {parent}?" if parent else f" (data is {ways})"
    return f"there is no folder {shown}{hint}"


def _nearest_name(spec: str) -> str | None:
    """A name beside the missing one that looks like it."""
    parent, name = os.path.split(encode_path(spec))
    try:
        names = [printable(entry) for entry in os.listdir(parent) if entry[:1] != b"."]
    except OSError:
        return None
    near = difflib.get_close_matches(printable(name), names, n=1)
    return os.path.join(os.path.dirname(spec), near[0]) if near else None
