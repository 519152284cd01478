"""Some of a source's pictures, as a source: a draw of labels, say."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from beit.data.sources import Source


@dataclass(frozen=True)
class Subset:
    """The pictures of a source at some places, numbered anew in the order given."""

    source: Source
    places: Sequence[int]

    @property
    def name(self) -> str:
        """Names the source and how many of its pictures these are."""
        return f"{self.source.name} ({len(self.places)} of {len(self.source)} pictures)"

    @property
    def fingerprint(self) -> str:
        """Changes with the source and with the choice."""
        places = ",".join(str(int(place)) for place in self.places)
        return hashlib.sha256(f"{self.source.fingerprint} {places}".encode()).hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        """The source's classes, chosen pictures or not."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int, /) -> Image.Image:
        """Picture `index` of the choice."""
        return self.source.read(int(self.places[index]))

    def identity(self, index: int, /) -> str:
        """What the source calls it."""
        return self.source.identity(int(self.places[index]))

    def label(self, index: int, /) -> int:
        """Its class in the source."""
        return self.source.label(int(self.places[index]))
