"""torchvision's data sets by name: a literal list, each with how it tells its splits."""

import difflib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.decoding.decode import BadPicture, decode, read_bytes, to_rgb
from beit.data.sources.cache import cache_folder
from beit.data.sources.indexed import Split
from beit.data.sources.layout import hash_of, held_out
from beit.errors import UserError


@dataclass(frozen=True)
class _Entry:
    """How a data set is asked for its parts. `val=None`: it has one part; 5 % is held out."""

    train: dict[str, Any]
    val: dict[str, Any] | None
    labels: str | None  # the attribute with all labels; without one a label costs a picture
    files: str | None = None  # the attribute with the paths of all pictures, or (path, class) pairs
    downloads: bool = True


_YES: dict[str, Any] = {"train": True}
_NO: dict[str, Any] = {"train": False}
_SETS: dict[str, _Entry] = {
    "CIFAR10": _Entry(_YES, _NO, "targets"),
    "CIFAR100": _Entry(_YES, _NO, "targets"),
    "MNIST": _Entry(_YES, _NO, "targets"),
    "FashionMNIST": _Entry(_YES, _NO, "targets"),
    "KMNIST": _Entry(_YES, _NO, "targets"),
    "SVHN": _Entry({"split": "train"}, {"split": "test"}, "labels"),
    "STL10": _Entry({"split": "train"}, {"split": "test"}, "labels"),
    "Flowers102": _Entry({"split": "train"}, {"split": "val"}, "_labels", "_image_files"),
    "OxfordIIITPet": _Entry({"split": "trainval"}, {"split": "test"}, "_labels", "_images"),
    "Food101": _Entry({"split": "train"}, {"split": "test"}, "_labels", "_image_files"),
    "DTD": _Entry({"split": "train"}, {"split": "val"}, "_labels", "_image_files"),
    "EuroSAT": _Entry({}, None, "targets", "samples"),
    "FakeData": _Entry({}, None, None, downloads=False),
}


class TorchvisionSource:
    """Some places of a torchvision data set, or of two one after the other."""

    def __init__(
        self,
        name: str,
        parts: list[Any],
        labels: NDArray[np.int64] | None,
        places: NDArray[np.int64],
    ) -> None:
        """Keep the pictures at `places` of the parts laid end to end."""
        self.name = name
        self.classes = _classes(parts[0], labels)
        self._parts, self._labels, self._places = parts, labels, places
        digest = hashlib.blake2b(name.encode(), digest_size=16)
        digest.update(places.tobytes())
        digest.update(b"" if labels is None else labels.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> Image.Image:
        """Picture `index` as RGB; raises `BadPicture`."""
        try:
            return to_rgb(self._item(index)[0])
        except (BadPicture, IndexError):
            raise
        except Exception as error:  # a damaged file of the set
            raise BadPicture(f"damaged ({type(error).__name__})") from None

    def identity(self, index: int) -> str:
        """Name and number in the whole set."""
        return f"{self.name}/{int(self._places[index])}"

    def label(self, index: int) -> int:
        """The number of the class."""
        if self._labels is None:
            return int(self._item(index)[1])
        return int(self._labels[self._places[index]])

    def labels(self) -> NDArray[np.int64]:
        """The class of every picture; without a list of them each costs a picture."""
        if self._labels is None:
            return np.array([self.label(index) for index in range(len(self))], np.int64)
        return self._labels[self._places]

    @property
    def held_out(self) -> bool:
        """Whether this is a part of the set, drawn by chance."""
        return len(self._places) < sum(len(part) for part in self._parts)

    def _item(self, index: int) -> Any:
        place = int(self._places[index])
        for part in self._parts:
            if place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(f"picture {index} of {len(self)}")


class TorchvisionFiles(TorchvisionSource):
    """A data set of picture files, whose bytes go through our own decoder."""

    def __init__(self, paths: list[bytes], *what: Any) -> None:
        """Keep the files of all parts laid end to end; `what` as for a `TorchvisionSource`."""
        super().__init__(*what)
        self._paths = paths

    def read(self, index: int) -> Image.Image:
        """Decode picture `index`; raises `BadPicture`."""
        return decode(self.read_bytes(index))

    def read_bytes(self, index: int) -> bytes:
        """The file's content; raises `BadPicture`."""
        return read_bytes(self._paths[int(self._places[index])])


def torchvision_source(rest: str, split: Split) -> TorchvisionSource:
    """Open `NAME[:ROOT]`; downloads to the root (by default in the cache) what is not there.

    Raises:
        UserError: The name is not on the list, or the data cannot be had.
    """
    name, _, root = rest.partition(":")
    if name not in _SETS:
        near = difflib.get_close_matches(name, _SETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_SETS)}"
        raise UserError(f"no torchvision data set {name!r} is known here; {hint}")
    entry = _SETS[name]
    folder = Path(root).expanduser() if root else cache_folder() / "torchvision"
    wanted = [entry.train] if split == "train" or entry.val is None else [entry.val]
    if split == "all" and entry.val is not None:
        wanted = [entry.train, entry.val]
    parts = [_open(name, folder, options, entry) for options in wanted]
    count = sum(len(part) for part in parts)
    labels = entry.labels and [np.asarray(getattr(part, entry.labels)) for part in parts]
    numbers = np.concatenate(labels).astype(np.int64) if labels else None
    spec, places = f"torchvision:{name}", _places(count, split, entry)
    if entry.files is None:
        return TorchvisionSource(spec, parts, numbers, places)
    entries = [item for part in parts for item in getattr(part, entry.files)]
    files = [os.fsencode(item[0] if isinstance(item, tuple) else item) for item in entries]
    return TorchvisionFiles(files, spec, parts, numbers, places)


def _places(count: int, split: Split, entry: _Entry) -> NDArray[np.int64]:
    if entry.val is not None or split == "all":
        return np.arange(count)
    hashes = np.array([hash_of(str(place).encode()) for place in range(count)], np.uint64)
    chosen = held_out(hashes)
    return np.flatnonzero(chosen if split == "val" else ~chosen)


def _open(name: str, root: Path, options: dict[str, Any], entry: _Entry) -> Any:
    from torchvision import datasets

    kind: Callable[..., Any] = getattr(datasets, name)  # of the literal list above
    if not entry.downloads:
        return kind(**options)
    try:
        return kind(str(root), download=False, **options)
    except (RuntimeError, OSError):  # not there, or not whole
        pass
    try:
        root.mkdir(parents=True, exist_ok=True)
        return kind(str(root), download=True, **options)
    except Exception as error:  # network, disk, checksum: each set has its own way to fail
        text = " ".join(str(error).split())[:160]
        raise UserError(
            f"torchvision:{name} is not in {root} and could not be downloaded ({text}); put it "
            f"there and write torchvision:{name}:{root}"
        ) from None


def _classes(part: Any, labels: NDArray[np.int64] | None) -> tuple[str, ...]:
    count = part.num_classes if labels is None else int(labels.max(initial=-1)) + 1
    named = getattr(part, "classes", None)
    if isinstance(named, list) and len(named) >= count:
        return tuple(str(name) for name in named)
    return tuple(str(number) for number in range(count))
