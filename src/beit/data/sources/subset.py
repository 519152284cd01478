"""Some of a source's pictures, as a source: a draw of labels, say."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.data.sources.file_table import FileTable, files_of
from beit.data.sources.protocol import HasBytes, Source, labels_of


class Subset:
    """The pictures of a source at some places, numbered anew in the order given."""

    def __init__(self, source: Source, places: Sequence[int] | NDArray[np.int64]) -> None:
        self.source = source
        self.places = np.asarray(places, dtype=np.int64)
        self.classes = source.classes
        self.name = f"{source.name} ({len(self.places)} of {len(source)} pictures)"
        digest = hashlib.sha256(source.fingerprint.encode() + self.places.tobytes())
        self.fingerprint = digest.hexdigest()
        if isinstance(source, HasBytes):  # then it is a `HasBytes` itself, and decoded as fast
            self.read_bytes = self._read_bytes

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int, /) -> Image.Image:
        """Picture `index` of the choice."""
        return self.source.read(int(self.places[index]))

    def _read_bytes(self, index: int, /) -> bytes:
        assert isinstance(self.source, HasBytes)
        return self.source.read_bytes(int(self.places[index]))

    def identity(self, index: int, /) -> str:
        """What the source calls it."""
        return self.source.identity(int(self.places[index]))

    def files(self) -> FileTable | None:
        """The files of the whole source."""
        return files_of(self.source)

    def label(self, index: int, /) -> int:
        """Its class in the source."""
        return self.source.label(int(self.places[index]))

    def labels(self) -> NDArray[np.int64]:
        """The class of every picture of the choice."""
        return labels_of(self.source)[self.places]
