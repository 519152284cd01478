"""What there is to read: one line of text, or what is handed over, becomes a source of pictures."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from beit.data.sources.handed import Handed, handed
from beit.data.sources.index import FolderSource, NoPicture
from beit.data.sources.indexed import Split
from beit.data.sources.packed_folder import PackedFolder, is_packed_folder
from beit.data.sources.path_names import encode_path, printable
from beit.data.sources.protocol import HasBytes, KnowsLabels, Source, labels_of
from beit.data.sources.shards import ShardSource, find_shards, other_folder
from beit.errors import UserError

__all__ = [
    "Data",
    "GivenData",
    "HasBytes",
    "KnowsLabels",
    "Source",
    "Split",
    "as_data",
    "labels_of",
    "open_parts",
    "open_source",
]

Data = str | Handed
_Object = Source | NDArray[Any]
GivenData = str | Path | _Object | Sequence[_Object] | Handed  # what Python's callers may give

_SCHEMES = ("digits", "torchvision", "hf")
_FEW = 20_000  # files that are looked at in no time
_COMPRESSED = (b".tar.gz", b".tgz", b".tar.bz2", b".tar.xz", b".tar.zst", b".zip")


def as_data(given: GivenData) -> Data:
    """What was given as pictures: a name, or what was handed over, which is looked at.

    Raises:
        UserError: It is no pictures.
    """
    if isinstance(given, Handed):
        return given
    return str(given) if isinstance(given, (str, os.PathLike)) else handed(given)


def open_source(spec: Data, split: Split, *, rescan: bool = False) -> Source:
    """Open a source.

    Args:
        spec: A folder (flat, nested, a folder a class; in ADE20K's layout its `images/` is taken;
            one that `beit data pack` made), a .tar file or a folder of them, `digits`,
            `torchvision:NAME[:ROOT]`, or `hf:NAME`; or what was handed over.
        split: "train", "val", or "all". Without folders or files that say so, 5 % are "val"; none
            when there are 20 pictures or fewer.
        rescan: Look at every file, and list every shard anew, to notice those overwritten in place.

    Raises:
        UserError: There is no such thing, or no picture in it.
    """
    if isinstance(spec, Handed):
        return spec.part(split)
    scheme, _, rest = spec.partition(":")
    path = encode_path(spec)
    if os.path.lexists(path):
        return _open_path(path, split, rescan=rescan)
    if scheme == "digits" and not rest:
        from beit.data.sources.arrays import digits

        return digits(split)
    if scheme == "torchvision" and rest:
        from beit.data.sources.torchvision_sets import torchvision_source

        return torchvision_source(rest, split)
    if scheme == "hf" and rest:
        from beit.data.sources.hub import hub_source

        return hub_source(rest, split)
    raise UserError(_unknown(spec, scheme))


def open_parts(spec: Data, *, rescan: bool = False) -> tuple[Source, Source]:
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
