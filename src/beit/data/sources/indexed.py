"""What folder and shard sources share: packed arrays, opened late, shared by all processes."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.decoding.decode import decode
from beit.data.sources.cache import load_meta, open_array
from beit.data.sources.path_names import PackedNames, printable

Split = Literal["train", "val", "all"]


class IndexedSource:
    """Pictures described by a generation of packed arrays.

    Pickling passes the paths alone; a worker maps the same arrays again, so that ten million
    pictures cost each worker a few pages.
    """

    def __init__(self, name: str, root: bytes, generation: Path, split: Split) -> None:
        self.name = name
        self.root = root
        self._generation = generation
        self._split = split
        meta = self._meta
        self.fingerprint = f"{meta['fingerprint']}-{split}"
        self.classes: tuple[str, ...] = tuple(
            printable(bytes.fromhex(name)) for name in meta["classes"]
        )

    def __len__(self) -> int:
        return len(self._paths) if self._places is None else len(self._places)

    def read(self, index: int) -> Image.Image:
        """Decode picture `index`; raises `BadPicture`."""
        return decode(self.read_bytes(index))

    def read_bytes(self, index: int) -> bytes:
        """The file's content; raises `BadPicture`."""
        raise NotImplementedError

    def path(self, index: int) -> bytes:
        """The path relative to the root."""
        return self._paths[self.place(index)]

    def identity(self, index: int) -> str:
        """The relative path as one line of printable text."""
        return printable(self.path(index))

    def label(self, index: int) -> int:
        """The number of the class, -1 = none."""
        return int(self._array("labels")[self.place(index)])

    def labels(self) -> NDArray[np.int64]:
        """The class of every picture, (N,), -1 = none."""
        labels = self._array("labels")
        return (
            labels.astype(np.int64)
            if self._places is None
            else labels[self._places].astype(np.int64)
        )

    @property
    def held_out(self) -> bool:
        """Whether this part was held out by chance, no folder having been named for it."""
        if self._split != "val" or not len(self):
            return False
        return bool(self._meta["held_out"])

    @property
    def training_folder(self) -> bytes | None:
        """The folder that is the training part, None when no folder is a part."""
        name = self._meta.get("training")
        return None if name is None else bytes.fromhex(name)

    @property
    def left_out(self) -> dict[str, int]:
        """Pictures that are in no part, by the folder that they are in; "" = in none."""
        counts = self._meta.get("left_out", {})
        return {printable(bytes.fromhex(name)): count for name, count in counts.items()}

    @property
    def passed_over(self) -> dict[str, int]:
        """Files of pictures that cannot be read here, by their ending."""
        return dict(self._meta.get("passed_over", {}))

    def size(self, index: int) -> int:
        """Bytes of the file when the index was made."""
        return int(self._array("sizes")[self.place(index)])

    def place(self, index: int) -> int:
        """Where picture `index` of this split stands in the whole index."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return index if self._places is None else int(self._places[index])

    @cached_property
    def _meta(self) -> dict[str, Any]:
        return load_meta(self._generation)

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            self._arrays[name] = open_array(self._generation, name)
        return self._arrays[name]

    @cached_property
    def _paths(self) -> PackedNames:
        return PackedNames(self._array("blob"), self._array("offsets"))

    @cached_property
    def _places(self) -> NDArray[np.int64] | None:
        return None if self._split == "all" else self._array(self._split)

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_arrays", "_paths", "_places", "_meta")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}
