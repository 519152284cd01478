"""A choice of a source's pictures is a source: the same pictures under other numbers."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.data.reading.fetch import WatchedReader
from beit.data.sources.opening import HasBytes, Source, open_source
from beit.data.sources.subset import Subset
from oracles.picture_zoo import scene


@pytest.fixture(scope="module")
def digits() -> Source:
    return open_source("digits", "train")


def test_pictures_labels_and_names_are_those_of_the_source(digits: Source) -> None:
    places = [7, 3, 1400, 3]
    some = Subset(digits, places)
    assert len(some) == 4 and some.classes == digits.classes
    for index, place in enumerate(places):
        assert some.label(index) == digits.label(place)
        assert some.identity(index) == digits.identity(place)
        assert np.array_equal(np.asarray(some.read(index)), np.asarray(digits.read(place)))
    assert some.name == f"{digits.name} (4 of {len(digits)} pictures)"


def test_the_fingerprint_tells_choices_apart(digits: Source) -> None:
    choices = [[1, 2, 3], [3, 2, 1], [1, 2], [1, 2, 4], []]
    sources = [*(Subset(digits, places) for places in choices)]
    sources.append(Subset(open_source("digits", "val"), [1, 2, 3]))
    assert len({source.fingerprint for source in sources}) == len(sources)
    again = Subset(digits, np.array([1, 2, 3], dtype=np.int32))
    assert again.fingerprint == sources[0].fingerprint != digits.fingerprint


def test_a_choice_of_a_choice(digits: Source) -> None:
    inner = Subset(Subset(digits, [10, 20, 30]), [2, 0])
    assert [inner.identity(index) for index in range(2)] == [
        digits.identity(30),
        digits.identity(10),
    ]


def test_outside_is_an_error(digits: Source) -> None:
    with pytest.raises(IndexError):
        Subset(digits, [0]).read(1)


def test_files_are_decoded_as_those_of_the_source_are(tmp_path: Path, digits: Source) -> None:
    for number in range(4):
        Image.fromarray(scene(40, 30 + number)).save(tmp_path / f"{number}.jpg")
    source = open_source(str(tmp_path), "all")
    some: Subset = pickle.loads(pickle.dumps(Subset(Subset(source, [3, 1]), [1])))
    assert WatchedReader(some, 0).pixels(0).equal(WatchedReader(source, 0).pixels(1))
    assert isinstance(some, HasBytes) and isinstance(source, HasBytes)
    assert some.read_bytes(0) == source.read_bytes(1)
    assert not isinstance(Subset(digits, [1]), HasBytes)
