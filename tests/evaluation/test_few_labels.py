"""The regression does not care about units, and gives the same number again."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from beit.evaluation.few_labels import logistic_regression_accuracy
from beit.evaluation.spread import spread


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


def test_pixels_that_hardly_ever_vary_are_not_blown_up() -> None:
    """One deviation for all features: else the noise of 300 would drown the other three."""
    (train_x, train_y), (test_x, test_y) = _blobs(30, 0), _blobs(300, 1)
    plain = logistic_regression_accuracy(train_x, train_y, test_x, test_y)
    generator = np.random.default_rng(2)
    noisy = [np.hstack([x, 1e-3 * generator.normal(size=(len(x), 300))]) for x in (train_x, test_x)]
    found = logistic_regression_accuracy(noisy[0], train_y, noisy[1], test_y)
    assert found == pytest.approx(plain, abs=0.01)


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
