"""Draws of labels are stratified and repeatable; the regression does not care about units."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from beit.errors import UserError
from beit.evaluation.few_labels import draw_labels, logistic_regression_accuracy, spread

LABELS = np.array([2, 0, 1, -1] * 30)


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


def _blobs(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.eye(3)[labels] * 4
    return centres + generator.normal(size=(count, 3)), labels


def test_regression_separates_what_can_be_separated() -> None:
    train, test = _blobs(60, 0), _blobs(300, 1)
    assert logistic_regression_accuracy(*train, *test) > 0.9
    shuffled = np.random.default_rng(0).permutation(train[1])
    assert logistic_regression_accuracy(train[0], shuffled, *test) < 0.7


def test_a_common_unit_and_constant_features_do_not_matter() -> None:
    train_x, train_y = _blobs(30, 0)
    test_x, test_y = _blobs(300, 1)
    plain = logistic_regression_accuracy(train_x, train_y, test_x, test_y)
    units = 1e4
    scaled = logistic_regression_accuracy(train_x * units, train_y, test_x * units, test_y)
    padded = logistic_regression_accuracy(
        np.pad(train_x, ((0, 0), (0, 1))), train_y, np.pad(test_x, ((0, 0), (0, 1))), test_y
    )
    assert plain == scaled == padded


def test_regression_gives_the_same_number_again() -> None:
    train, test = _blobs(12, 0), _blobs(100, 1)
    first = logistic_regression_accuracy(*train, *test)
    assert first == logistic_regression_accuracy(*train, *test)


def test_spread_is_mean_and_sample_deviation() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    squares = sum((value - 7 / 3) ** 2 for value in (1.0, 2.0, 4.0))
    assert found.deviation == pytest.approx(math.sqrt(squares / 2))
    assert found.count == 3
    assert spread([0.5]).deviation is None
