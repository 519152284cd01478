import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from beit.randomness import (
    KeyedPermutation,
    epoch_order,
    sample_generator,
    step_seed,
    step_uniform,
)

KEYS = st.integers(0, 2**64 - 1)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=KEYS)
def test_a_keyed_permutation_is_a_permutation(size: int, key: int) -> None:
    image = KeyedPermutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 10**12), key=KEYS, data=st.data())
def test_it_maps_each_position_alone_as_among_others(
    size: int, key: int, data: st.DataObject
) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    permutation = KeyedPermutation(size, key)
    together = permutation(positions)
    alone = [permutation(positions[place : place + 1])[0] for place in range(len(positions))]
    assert together.tolist() == alone
    assert ((0 <= together) & (together < size)).all()
    assert len(set(together.tolist())) == len(set(positions.tolist()))


def test_it_leaves_its_argument_alone_and_refuses_what_is_outside() -> None:
    positions = np.arange(10)
    KeyedPermutation(10, 1)(positions)
    assert np.array_equal(positions, np.arange(10))
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            KeyedPermutation(10, 1)(np.array([outside]))
    assert len(KeyedPermutation(10, 1)(np.array([], np.int64))) == 0


def test_orders_are_uniform() -> None:
    """Each picture comes first about equally often, and neighbours do not stay neighbours."""
    size, epochs = 20, 1200
    orders = np.stack([epoch_order(3, epoch, size)(np.arange(size)) for epoch in range(epochs)])
    for place in (0, 7, 19):
        counts = np.bincount(orders[:, place], minlength=size)
        chi_square = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
        assert chi_square < 50  # 19 degrees of freedom: above 43.8 once in 1,000
    following = (np.diff(orders, axis=1) == 1).mean()
    assert abs(following - 1 / size) < 0.01


def test_orders_of_epochs_and_seeds_differ() -> None:
    orders = [
        epoch_order(seed, epoch, 1000)(np.arange(1000)) for seed in range(3) for epoch in range(3)
    ]
    for place, one in enumerate(orders):
        for other in orders[:place]:
            assert (one == other).mean() < 0.02


def test_a_sample_is_a_function_of_its_key_alone() -> None:
    first = sample_generator(1, 2, 3, "crop").random(8)
    sample_generator(9, 9, 9, "crop").random(100)
    assert np.array_equal(first, sample_generator(1, 2, 3, "crop").random(8))
    others = [(0, 2, 3, "crop"), (1, 0, 3, "crop"), (1, 2, 0, "crop"), (1, 2, 3, "flip")]
    for seed, epoch, index, stream in (*others, (1, 3, 2, "crop")):
        assert not np.array_equal(first, sample_generator(seed, epoch, index, stream).random(8))


@settings(max_examples=30, deadline=None)
@given(seed=KEYS, epoch=st.integers(0, 10**6), index=st.integers(0, 10**9))
def test_a_sample_is_drawn_by_philox_under_the_hash_of_its_key(
    seed: int, epoch: int, index: int
) -> None:
    """Runs, token banks and resumed runs of other versions rest on these very numbers."""
    text = f"int:{seed}\x1fstr:crop"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    counter = np.array([0, 0, index, epoch], np.uint64)
    oracle = np.random.Generator(np.random.Philox(key=key, counter=counter))
    drawn = sample_generator(seed, epoch, index, "crop")
    assert drawn.random(9).tolist() == oracle.random(9).tolist()
    assert drawn.permutation(5).tolist() == oracle.permutation(5).tolist()


def test_long_draws_of_neighbouring_samples_do_not_overlap() -> None:
    """A counter that a draw advances must not run into the next sample's."""
    long = sample_generator(0, 0, 0, "noise").random(4096)
    for epoch, index in ((0, 1), (1, 0), (0, 2)):
        assert not np.isin(sample_generator(0, epoch, index, "noise").random(64), long).any()


def test_streams_epochs_and_indices_are_independent_and_uniform() -> None:
    count = 3000
    streams = {
        "crop": [sample_generator(5, 0, index, "crop").random() for index in range(count)],
        "flip": [sample_generator(5, 0, index, "flip").random() for index in range(count)],
        "next": [sample_generator(5, 1, index, "crop").random() for index in range(count)],
        "seed": [sample_generator(6, 0, index, "crop").random() for index in range(count)],
    }
    for values in streams.values():
        counts = np.histogram(values, 10, (0, 1))[0]
        assert ((counts - count / 10) ** 2 / (count / 10)).sum() < 33  # 9 degrees, 1 in 10,000
    correlations = np.corrcoef(list(streams.values())) - np.eye(len(streams))
    assert np.abs(correlations).max() < 4 / np.sqrt(count)
    crop = np.array(streams["crop"])
    assert abs(np.corrcoef(crop[1:], crop[:-1])[0, 1]) < 4 / np.sqrt(count)


def test_step_seeds_differ_and_fit_torch() -> None:
    seeds = {
        step_seed(seed, step, rank, stream)
        for seed in (0, 1)
        for step in (0, 1, 12)
        for rank in (0, 1, 2)
        for stream in ("micro-0", "micro-1")
    }
    assert len(seeds) == 2 * 3 * 3 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))
    assert step_seed(1, 23) != step_seed(12, 3)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 32), max_size=5), step=st.integers(0, 10**9))
def test_step_draws_are_the_same_however_the_batch_is_cut(cuts: list[int], step: int) -> None:
    edges = sorted({0, 32, *cuts})
    whole = step_uniform(4, step, range(32), 3, "paths")
    parts = [
        step_uniform(4, step, range(start, stop), 3, "paths")
        for start, stop in zip(edges, edges[1:], strict=False)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.dtype == torch.float32 and 0 <= whole.min() and whole.max() < 1


def test_step_draws_are_others_for_another_seed_step_row_or_stream() -> None:
    """Else the same branches would be dropped in every step of a run."""
    drawn = [
        step_uniform(seed, step, range(rows, rows + 4), 3, stream)
        for seed in (0, 1)
        for step in (0, 1, 12)
        for rows in (0, 4)
        for stream in ("paths", "dropout")
    ]
    numbers = torch.cat(drawn).flatten()
    assert len(set(numbers.tolist())) > 0.99 * len(numbers)


def test_equal_numbers_of_another_type_are_not_confused() -> None:
    """The cache of keys must not take True for 1: the keys are hashed with their types."""
    assert step_seed(1, 5) != step_seed(True, 5)
