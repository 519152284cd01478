"""Data sets of the Hugging Face hub, read through the `datasets` package (an extra)."""

import inspect
import os
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.decoding.decode import BadPicture, decode, read_bytes
from beit.data.sources.indexed import Split
from beit.data.sources.layout import hash_of, held_out
from beit.data.sources.part_names import HELD_OUT, TRAINING, first_of
from beit.data.sources.path_names import encode_path
from beit.errors import UserError


class HubSource:
    """Rows of a hub data set's picture column; the files' bytes go through our own decoder."""

    def __init__(self, name: str, rows: Any, places: NDArray[np.int64]) -> None:
        """Keep the rows at `places`."""
        picture, label = _columns(name, rows.features)
        from datasets import Image as ImageFeature

        self.name = name
        self.classes: tuple[str, ...] = tuple(rows.features[label].names) if label else ()
        self.fingerprint = f"{rows._fingerprint}-{len(places)}"
        self._rows = rows.cast_column(picture, ImageFeature(decode=False))
        self._picture, self._label, self._places = picture, label, places
        self._folders = _folders_of(name)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> Image.Image:
        """Decode picture `index`; raises `BadPicture`."""
        return decode(self.read_bytes(index))

    def read_bytes(self, index: int) -> bytes:
        """The file's content, from the row or from where that says; raises `BadPicture`."""
        cell = self._rows[int(self._places[index])][self._picture]
        if cell is None:
            raise BadPicture("no picture in this row")
        held: bytes | None = cell["bytes"]
        return self._own_file(cell) if held is None else held

    def _own_file(self, cell: dict[str, Any]) -> bytes:
        """The file that a row names, where it lies with the data set: a row is from outside.

        Raises:
            BadPicture: It lies elsewhere, or cannot be read.
        """
        path = str(cell["path"]).encode("utf-8", "surrogateescape")
        if not any(_is_below(path, folder) for folder in self._folders):
            raise BadPicture("a file outside the data set")
        return read_bytes(path)

    def identity(self, index: int) -> str:
        """Name and row."""
        return f"{self.name}/{int(self._places[index])}"

    def label(self, index: int) -> int:
        """The number of the class, -1 = none."""
        if self._label is None:
            return -1
        # The column alone: a whole row would read the picture too.
        value = self._rows.select_columns([self._label])[int(self._places[index])][self._label]
        return -1 if value is None else int(value)

    def labels(self) -> NDArray[np.int64]:
        """The class of every picture, from the column alone; -1 = none."""
        if self._label is None:
            return np.full(len(self), -1, np.int64)
        column = self._rows.select_columns([self._label])[:][self._label]
        known = np.array([-1 if value is None else value for value in column], np.int64)
        return known[self._places]

    @property
    def held_out(self) -> bool:
        """Whether this is a part of the rows, drawn by chance."""
        return len(self._places) < len(self._rows)


def hub_source(name: str, split: Split) -> HubSource:
    """Open a hub data set by its name; no code of the data set's is ever run.

    Raises:
        UserError: The package is missing, or the data set cannot be had or holds no pictures.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f'hf:{name} needs the datasets package: pip install "beit[hub]"') from None
    try:
        parts = datasets.load_dataset(name, **_no_code(datasets.load_dataset))
    except Exception as error:  # network, names, formats: the package has many ways to fail
        text = " ".join(str(error).split())[:160]
        raise UserError(f"hf:{name} cannot be opened ({text})") from None
    return HubSource(f"hf:{name}", *_choose(datasets, dict(parts), split))


def _choose(datasets: Any, parts: dict[str, Any], split: Split) -> tuple[Any, NDArray[np.int64]]:
    """The rows and the places in them that make the split."""
    own = {name.encode(): rows for name, rows in parts.items()}
    train, other = first_of(TRAINING, own), first_of(HELD_OUT, own)
    training = next(iter(own.values())) if train is None else own[train]
    separate = None if train is None or other is None else own[other]
    if split == "all":
        rows = training if separate is None else datasets.concatenate_datasets([training, separate])
        return rows, np.arange(len(rows))
    if separate is not None:
        rows = training if split == "train" else separate
        return rows, np.arange(len(rows))
    hashes = np.array([hash_of(str(row).encode()) for row in range(len(training))], np.uint64)
    chosen = held_out(hashes)
    return training, np.flatnonzero(chosen if split == "val" else ~chosen)


def _columns(name: str, features: Any) -> tuple[str, str | None]:
    """The picture column and the label column, by their types."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    pictures = [column for column, kind in kinds.items() if kind == "Image"]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    if not pictures:
        raise UserError(f"{name} has no column of pictures, only {', '.join(kinds)}")
    return pictures[0], labels[0] if labels else None


def _no_code(load_dataset: Any) -> dict[str, bool]:
    """What forbids loading scripts where they still exist (datasets 3), whatever is in force there.

    Later versions know neither scripts nor the argument.
    """
    known = "trust_remote_code" in inspect.signature(load_dataset).parameters
    return {"trust_remote_code": False} if known else {}


def _folders_of(name: str) -> tuple[bytes, ...]:
    """Where a data set's files may lie: in the caches of the packages, or in its own folder."""
    from datasets import config

    names = ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH")
    found = [getattr(config, each, None) for each in names]
    with suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        found.append(HF_HUB_CACHE)
    own = encode_path(name.removeprefix("hf:"))
    kept = [os.fsencode(folder) for folder in found if folder is not None]
    return (*kept, own) if os.path.isdir(own) else tuple(kept)


def _is_below(path: bytes, folder: bytes) -> bool:
    real, top = os.path.realpath(path), os.path.realpath(folder)
    return real.startswith(os.path.join(top, b""))
