import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit.data.loading.order import locate, positions
from beit.errors import UserError
from beit.randomness import epoch_order
from beit.shares import Shares


def _steps(shares: Shares, samples_seen: int, steps: int) -> list[range]:
    line = positions(shares, samples_seen)
    return [next(line) for _ in range(steps * shares.accumulation)]


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    micro=st.integers(1, 5),
    seen=st.integers(0, 1000),
)
def test_ranks_and_micro_steps_cover_the_line_once(
    ranks: int, accumulation: int, micro: int, seen: int
) -> None:
    batch = ranks * accumulation * micro
    taken: list[int] = []
    for rank in range(ranks):
        for where in _steps(Shares(batch, ranks, rank, accumulation), seen, 3):
            assert len(where) == micro
            taken += where
    assert sorted(taken) == list(range(seen, seen + 3 * batch))


def test_the_rows_of_a_rank_are_as_designed() -> None:
    """Rank r, micro-step m: [r B/W + m B/(W A), ...)."""
    shares = Shares(24, ranks=2, rank=1, accumulation=3)
    assert [shares.rows(micro) for micro in range(3)] == [
        range(12, 16),
        range(16, 20),
        range(20, 24),
    ]


@pytest.mark.parametrize(("batch", "ranks", "accumulation"), [(10, 4, 1), (8, 2, 3), (2, 4, 1)])
def test_a_batch_that_cannot_be_cut_is_refused(batch: int, ranks: int, accumulation: int) -> None:
    with pytest.raises(UserError, match=r"does not divide into .* a multiple of \d+"):
        Shares(batch, ranks, 0, accumulation)


def test_each_picture_comes_once_an_epoch_and_batches_straddle_the_edge() -> None:
    size, batch = 23, 8
    epochs, indices = locate(7, size, range(3 * size))
    for epoch in range(3):
        assert sorted(indices[epochs == epoch]) == list(range(size))
    straddling, _ = locate(7, size, range(2 * batch, 3 * batch))
    assert straddling.tolist() == [0] * 7 + [1]
    assert not np.array_equal(indices[:size], indices[size : 2 * size])


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 10**11), length=st.integers(1, 40), size=st.integers(1, 10**7))
def test_a_position_means_the_same_wherever_a_run_starts(
    start: int, length: int, size: int
) -> None:
    epochs, indices = locate(1, size, range(start, start + length))
    for place in {0, length // 2, length - 1}:
        epoch, index = locate(1, size, range(start + place, start + place + 1))
        assert (epoch[0], index[0]) == (epochs[place], indices[place])
        assert epoch[0] == (start + place) // size


@pytest.mark.parametrize("size", [60, 4096, 4097, 10_000, 10_000_000])
@pytest.mark.parametrize("start", [0, 4090, 9_998, 123_456])
def test_runs_of_positions_are_those_of_the_epochs_order(size: int, start: int) -> None:
    """Whatever blocks and epochs a run reaches into."""
    epochs, indices = locate(3, size, range(start, start + 5000))
    for place in (0, 1, 5, 6, 7, 2500, 4999):
        epoch, position = divmod(start + place, size)
        assert epochs[place] == epoch
        assert indices[place] == epoch_order(3, epoch, size)(np.array([position]))[0]
