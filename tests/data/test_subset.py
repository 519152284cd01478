"""A choice of a source's pictures is a source: the same pictures under other numbers."""

import numpy as np
import pytest

from beit.data.sources import Source, open_source
from beit.data.subset import Subset


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
