"""Choices of labels are stratified, repeatable and nested; what cannot be learned is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.data.checking.labels import check_classes, choose_labels, draw_labels
from beit.data.checking.remarks import unmeasured_classes
from beit.data.sources.opening import Source, labels_of, open_source
from beit.data.sources.subset import Subset
from beit.errors import UserError

LABELS = np.array([2, 0, 1, -1] * 30)


class Labelled:
    """Pictures that only have labels."""

    name = "labelled"
    fingerprint = "f"

    def __init__(self, labels: list[int], classes: tuple[str, ...] = ("ant", "bee", "cow")) -> None:
        self._labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> Image.Image:
        raise AssertionError("no picture is read for its label")

    def identity(self, index: int) -> str:
        return f"picture-{index}"

    def label(self, index: int) -> int:
        return self._labels[index]


SOURCE = Labelled([0] * 200 + [1] * 55 + [2] * 3)


def _places(amount: str, seed: int = 0, source: Source = SOURCE) -> set[str]:
    chosen = choose_labels(source, amount, seed)
    return {chosen.identity(index) for index in range(len(chosen))}


def test_classes_of_one_size_give_pictures_of_other_places() -> None:
    """Else folders in the same order (by camera, by day) would be learned from in step."""
    source = Labelled([0] * 40 + [1] * 40 + [2] * 40)
    drawn = draw_labels([source.label(place) for place in range(120)], 8, 0, 0)
    chosen = [int(name.removeprefix("picture-")) for name in _places("20%", 0, source)]
    for places in (drawn.tolist(), chosen):
        inside = [{p % 40 for p in places if p // 40 == label} for label in range(3)]
        assert all(len(few) == 8 for few in inside)
        assert inside[0] != inside[1] != inside[2] != inside[0]


@pytest.mark.parametrize(
    ("amount", "counts"),
    [
        ("all", [200, 55, 3]),
        ("100%", [200, 55, 3]),
        ("10%", [20, 6, 1]),
        ("1 %", [2, 1, 1]),
        ("0.1%", [1, 1, 1]),
        ("2/class", [2, 2, 2]),
        (" 3/Class ", [3, 3, 3]),
    ],
)
def test_each_class_gives_its_share_and_at_least_one(amount: str, counts: list[int]) -> None:
    chosen = choose_labels(SOURCE, amount, 0)
    assert np.bincount(labels_of(chosen), minlength=3).tolist() == counts
    assert len(_places(amount)) == len(chosen) == sum(counts)


def test_all_of_a_source_is_the_source() -> None:
    assert choose_labels(SOURCE, "all", 0) is SOURCE is choose_labels(SOURCE, "100%", 0)


def test_smaller_choices_are_part_of_larger_ones() -> None:
    chain = [_places(amount) for amount in ("1%", "3/class", "10%", "33.3%", "all")]
    assert len(chain[0]) == 4 and _places("1/class") < _places("2/class") < chain[1]
    assert chain[0] < chain[2] < chain[3] < chain[4]


def test_a_choice_is_a_function_of_the_seed_and_tells_by_its_fingerprint() -> None:
    assert _places("10%", 1) == _places("10%", 1) != _places("10%", 2)
    choices = [("10%", 1), ("10%", 2), ("1%", 1), ("all", 1)]
    prints = {choose_labels(SOURCE, *choice).fingerprint for choice in choices}
    assert len(prints) == 4
    assert choose_labels(SOURCE, "10%", 1).fingerprint in prints


@pytest.mark.parametrize(
    ("amount", "culprit"),
    [
        ("0%", "'0%'.*100 per cent"),
        ("120%", "'120%'.*100 per cent"),
        ("0/class", "'0/class'.*above 0"),
        ("2.5/class", "'2.5/class'.*whole number"),
        ("4/class", "class cow of labelled has 3 pictures to train on; .*percentage"),
        ("-5%", "'-5%' are not understood.*50/class"),
        ("some", "'some' are not understood"),
        ("50", "'50' are not understood"),
        ("٣%", "not understood"),
        ("9" * 9999 + "%", "not understood"),
        ("", "not understood"),
    ],
)
def test_amounts_that_cannot_be_had_are_named(amount: str, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit) as refusal:
        choose_labels(SOURCE, amount, 0)
    assert "\n" not in str(refusal.value) and len(refusal.value.args) == 1


def test_labels_cannot_be_chosen_where_there_are_none() -> None:
    for source in (Labelled([-1, -1], ()), Labelled([-1, -1])):
        assert choose_labels(source, "all", 0) is source
        with pytest.raises(UserError, match="has no labels"):
            choose_labels(source, "50%", 0)


def test_labels_come_at_once_from_every_source(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"train/a": 3, "train/b": 2, "val/a": 1, "train": 1})
    for source in (
        SOURCE,
        open_source("digits", "val"),
        open_source(str(folder), "train"),
        open_source(str(folder), "val"),
        open_source(str(folder), "all"),
        open_source("torchvision:FakeData", "val"),
        Subset(open_source("digits", "all"), [9, 3, 3]),
    ):
        some = source if len(source) < 2000 else Subset(source, range(5))
        found = labels_of(some)
        assert found.dtype == np.int64
        assert found.tolist() == [some.label(index) for index in range(len(some))]


def test_real_photographs(imagenette: Path) -> None:
    train, val = open_source(str(imagenette), "train"), open_source(str(imagenette), "val")
    check_classes(train, val)
    counts = np.bincount(labels_of(train))
    tenth = np.bincount(labels_of(choose_labels(train, "10%", 0)))
    assert np.array_equal(tenth, np.floor(counts / 10 + 0.5))
    with pytest.raises(UserError, match=f"{counts.min()} pictures"):
        choose_labels(train, f"{counts.min() + 1}/class", 0)


def _folder(root: Path, pictures: dict[str, int]) -> Path:
    for folder, count in pictures.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (2, 2)).save(root / folder / f"{number}.png")
    return root


def test_classes_of_which_chance_held_out_nothing_are_named(tmp_path: Path) -> None:
    spec = str(_folder(tmp_path, {f"{number:02}": 3 for number in range(12)}))
    train, validation = open_source(spec, "train"), open_source(spec, "val")
    check_classes(train, validation)
    seen = {validation.label(place) for place in range(len(validation))}
    (sentence,) = unmeasured_classes(train, validation)
    assert (
        f"of {len(seen)} of the 12 classes" in sentence
        and f"and {12 - len(seen) - 5} more" in sentence
    )
    first = next(name for label, name in enumerate(train.classes) if label not in seen)
    assert f"nothing is measured on {first}, " in sentence
    spec = str(_folder(tmp_path / "both", TWO))
    assert unmeasured_classes(open_source(spec, "train"), open_source(spec, "val")) == []


TWO = {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}


@pytest.mark.parametrize(
    ("pictures", "culprit"),
    [
        ({"train/a": 1, "val/a": 1}, "holds one picture to train on"),
        ({"train": 3, "val": 2}, "training pictures of .* have no classes"),
        ({**TWO, "train": 1}, "1 of 5 training pictures .* have no class, train/0.png first"),
        ({**TWO, "val/b": 0, "val/a": 0, "val": 1}, "validation pictures .* have no classes"),
        ({**TWO, "val": 2}, "2 of 4 validation pictures"),
        ({**TWO, "train/c": 0}, "class c of .* has no training picture"),
        ({"a": 30, "b": 30, "c": 0}, "class c of .* has no training picture"),
        ({"train/a": 4, "train/b": 0, "val/a": 2, "val/b": 0}, "class b .* no training picture"),
        ({"train/a": 4, "val/a": 2}, "has a single class, a:"),
        ({"train/a": 30, "train/b": 30, "val": 0}, "val/ of .* holds no picture: fill it"),
        ({"train/a": 30, "train/b": 30, "val/a": 0}, "val/ of .* holds no picture: fill it"),
        ({"Valid/a": 3, "test/a": 3}, "folders Valid, test .* look like parts"),
        ({f"{number:03d}": 1 for number in range(30)}, "class 0.. of .* chance held out all of"),
        ({**TWO, "val/c": 1}, "differ: c has validation pictures but none in training"),
        ({**TWO, "train/c": 1}, "differ: c has training pictures but none in validation"),
        ({**TWO, "train/c": 1, "val/d": 1}, "differ: d has validation pictures"),
    ],
)
def test_data_that_cannot_be_learned_is_refused(
    tmp_path: Path, pictures: dict[str, int], culprit: str
) -> None:
    spec = str(_folder(tmp_path, pictures))
    with pytest.raises(UserError, match=culprit) as refusal:
        check_classes(open_source(spec, "train"), open_source(spec, "val"))
    assert "\n" not in str(refusal.value)


def test_good_data_passes(tmp_path: Path) -> None:
    spec = str(_folder(tmp_path / "laid out", TWO))
    check_classes(open_source(spec, "train"), open_source(spec, "val"))
    check_classes(open_source("digits", "train"), open_source("digits", "val"))
    # Held out by chance: a class may be missing there, or nothing be held out at all.
    spec = str(_folder(tmp_path / "by chance", {"a": 40, "b": 2}))
    assert len(open_source(spec, "val")) < 5
    check_classes(open_source(spec, "train"), open_source(spec, "val"))
    spec = str(_folder(tmp_path / "few", {"a": 3, "b": 2}))
    assert len(open_source(spec, "val")) == 0
    check_classes(open_source(spec, "train"), open_source(spec, "val"))


def test_classes_of_separate_sources_are_compared_by_name_and_number() -> None:
    train = Labelled([0, 1], ("ant", "bee"))
    check_classes(train, Labelled([1, 0], ("ant", "bee")))
    with pytest.raises(UserError, match="cow is a class of validation but not of training"):
        check_classes(train, Labelled([0, 1], ("ant", "cow", "bee")))
    with pytest.raises(UserError, match="number the same classes differently"):
        check_classes(train, Labelled([0, 1], ("bee", "ant")))
    with pytest.raises(UserError, match="no picture to train on"):
        check_classes(Labelled([]), train)


def test_a_draw_has_as_many_of_each_class_and_none_twice() -> None:
    chosen = draw_labels(LABELS, 7, seed=0, draw=0)
    assert len(set(chosen.tolist())) == 21
    assert np.bincount(LABELS[chosen]).tolist() == [7, 7, 7]
    assert (np.diff(chosen) > 0).all()


def test_a_draw_is_a_function_of_seed_and_number() -> None:
    first = draw_labels(LABELS, 5, seed=3, draw=1)
    assert (first == draw_labels(LABELS, 5, seed=3, draw=1)).all()
    assert (first != draw_labels(LABELS, 5, seed=3, draw=2)).any()
    assert (first != draw_labels(LABELS, 5, seed=4, draw=1)).any()


def test_fewer_labels_are_part_of_more() -> None:
    few, more = (set(draw_labels(LABELS, n, 0, 0).tolist()) for n in (2, 20))
    assert few < more


def test_every_picture_can_be_drawn() -> None:
    seen = {index for draw in range(60) for index in draw_labels(LABELS, 5, 0, draw).tolist()}
    assert seen == set(np.flatnonzero(LABELS >= 0).tolist())


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(UserError, match="Class 0 has 30 pictures and 31"):
        draw_labels(LABELS, 31, seed=0, draw=0)
    with pytest.raises(UserError, match="labelled"):
        draw_labels(np.full(4, -1), 1, seed=0, draw=0)
