"""Masks: statistics of the authors' code, laws for every masker, lists of fixed length."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import beit.masking
from beit.errors import UserError
from beit.masking import (
    MASKERS,
    Draws,
    Grid,
    Mask,
    _fours,
    _Patches,
    blockwise_paper,
    blockwise_reference,
    capacity,
    place_list,
    register,
    target_count,
    uniform_random,
)
from oracles.oracle_masking import (
    plain_reference_mask,
    slow_paper_mask,
    slow_reference_mask,
)

DRAWS = 3000
PAPER_GRID = (14, 14)
names = pytest.mark.parametrize("name", list(MASKERS))


@pytest.fixture(scope="module")
def reference_draws() -> NDArray[np.bool_]:
    """(DRAWS, 14, 14) masks as the authors' code draws them."""
    generator = np.random.default_rng(0)
    return np.stack([blockwise_reference(generator, PAPER_GRID, count=75) for _ in range(DRAWS)])


def test_reference_counts(reference_draws: NDArray[np.bool_]) -> None:
    """Computed figures: mean 74.5, minimum 66, exactly 75 in 68 % of draws."""
    counts = reference_draws.sum((1, 2))
    assert counts.mean() == pytest.approx(74.5, abs=0.1)
    assert 60 <= counts.min() <= 69 and counts.max() == 75
    assert (counts == 75).mean() == pytest.approx(0.68, abs=0.03)


def test_reference_places(reference_draws: NDArray[np.bool_]) -> None:
    """Computed figures: a corner patch 4 %, a centre patch 73 %; edges are not forgotten."""
    often = reference_draws.mean(0)
    corners = often[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners == pytest.approx([0.04] * 4, abs=0.015)
    assert often[6:8, 6:8].mean() == pytest.approx(0.73, abs=0.03)
    for first, last in ((often[0], often[-1]), (often[:, 0], often[:, -1])):
        assert last.min() > 0.02
        assert last.mean() == pytest.approx(first.mean(), rel=0.1)


def test_reference_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed figure: 4.1 blocks a mask."""
    blocks = 0
    original = beit.masking._reference_block

    def counted(draws: Draws, patches: _Patches, smallest: int, remaining: int) -> int:
        nonlocal blocks
        added = original(draws, patches, smallest, remaining)
        blocks += added > 0
        return added

    monkeypatch.setattr(beit.masking, "_reference_block", counted)
    generator = np.random.default_rng(1)
    for _ in range(1500):
        blockwise_reference(generator, PAPER_GRID, count=75)
    assert blocks / 1500 == pytest.approx(4.1, abs=0.15)


def test_reference_blocks_are_smaller_than_the_grid() -> None:
    """Tall blocks are likely here: four patches with an aspect ratio up to 3.3 on four rows."""
    generator = np.random.default_rng(7)
    heights = set()
    for _ in range(500):
        patches = _Patches(4, 30)
        beit.masking._reference_block(_fours(generator, 1), patches, 4, 4)
        heights.add(int(patches.as_array().any(1).sum()))
    assert heights == {1, 2, 3}


@pytest.mark.parametrize(("side", "cap", "smallest"), [(14, 75, 16), (12, 60, 6)])
def test_reference_equals_the_slow_oracle_in_distribution(
    side: int, cap: int, smallest: int
) -> None:
    chance, generator = random.Random(0), np.random.default_rng(2)
    slow = np.array([slow_reference_mask(chance, side, cap, smallest)[0] for _ in range(1500)])
    quick = np.stack(
        [
            blockwise_reference(generator, (side, side), count=cap, minimum_block=smallest)
            for _ in range(1500)
        ]
    )
    slow_counts, quick_counts = slow.sum((1, 2)), quick.sum((1, 2))
    assert quick_counts.mean() == pytest.approx(slow_counts.mean(), abs=0.2)
    assert (quick_counts == cap).mean() == pytest.approx((slow_counts == cap).mean(), abs=0.06)
    # Six standard errors of a difference of two shares of 1500.
    np.testing.assert_allclose(quick.mean(0), slow.mean(0), atol=6 * np.sqrt(0.5 / 1500))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("grid", [(14, 14), (7, 19), (3, 4), (1, 9)])
def test_reference_draws_stay_what_they_were(grid: tuple[int, int], exact: bool) -> None:
    """Token banks, runs and their repetitions rest on the very masks of a key."""
    for seed in range(60):
        target, smallest = target_count(grid, 0.4), min(16, target_count(grid, 0.4))
        mask = plain_reference_mask(np.random.default_rng(seed), grid, target, smallest)
        drawn = blockwise_reference(np.random.default_rng(seed), grid, ratio=0.4, exact=exact)
        if exact:  # grown or eaten away from there
            assert drawn.sum() == target and (drawn >= mask).all()
        else:
            assert drawn.tolist() == mask.tolist()


def test_paper_masks_more_than_its_target_by_less_than_a_block() -> None:
    """Algorithm 1 ends when |M| > 0.4 N = 78.4."""
    generator = np.random.default_rng(3)
    masks = np.stack([blockwise_paper(generator, PAPER_GRID, ratio=0.4) for _ in range(500)])
    counts = masks.sum((1, 2))
    assert counts.min() >= 79 and counts.max() <= 78 + 16
    assert len(set(counts.tolist())) > 3
    assert masks.mean(0)[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 0.01


def test_paper_equals_the_slow_oracle_in_distribution() -> None:
    """The aspect ratio is uniform, so that blocks are tall three times out of four."""
    chance, generator = random.Random(0), np.random.default_rng(8)
    slow = np.array([slow_paper_mask(chance, 14, 0.4, 16) for _ in range(1500)])
    quick = np.stack([blockwise_paper(generator, PAPER_GRID, ratio=0.4) for _ in range(1500)])
    assert quick.sum((1, 2)).mean() == pytest.approx(slow.sum((1, 2)).mean(), abs=0.5)
    np.testing.assert_allclose(quick.mean(0), slow.mean(0), atol=6 * np.sqrt(0.5 / 1500))
    for axis in (1, 2):  # edges of blocks, across and down
        found, expected = (np.diff(masks, axis=axis).sum((1, 2)) for masks in (quick, slow))
        spread = math.hypot(found.std(), expected.std()) / math.sqrt(1500)
        assert abs(found.mean() - expected.mean()) < 6 * spread


def test_uniform_random_masks_every_patch_alike() -> None:
    generator = np.random.default_rng(4)
    often = np.mean([uniform_random(generator, (5, 6), ratio=0.4) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(often, 0.4, atol=0.04)


def test_exact_keeps_the_blocks_together() -> None:
    """Topping up and trimming at the edges leaves most masked patches with masked neighbours."""
    generator = np.random.default_rng(5)
    for masker in (blockwise_reference, blockwise_paper):
        masks = [masker(generator, PAPER_GRID, count=75, exact=True) for _ in range(300)]
        assert {int(mask.sum()) for mask in masks} == {75}
        pairs = np.mean([(mask[1:] & mask[:-1]).sum() for mask in masks])
        scattered = [uniform_random(generator, PAPER_GRID, count=75) for _ in range(300)]
        assert pairs > 1.8 * np.mean([(mask[1:] & mask[:-1]).sum() for mask in scattered])


def test_exact_grows_and_trims_on_every_side_alike() -> None:
    """A block of 3 x 3 in 5 x 5 has 12 places to grow to and 8 to lose, all equally likely."""
    generator, block = np.random.default_rng(9), np.zeros((5, 5), np.bool_)
    block[1:4, 1:4] = True
    for target, places in ((10, 12), (8, 8)):
        changed = [beit.masking._exactly(generator, block, target) ^ block for _ in range(1200)]
        often = np.mean(changed, axis=0)
        assert np.count_nonzero(often) == places
        assert often[often > 0] == pytest.approx([1 / places] * places, abs=0.04)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(MASKERS)),
    grid=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    ratio=st.floats(0.01, 1.0),
    minimum_block=st.integers(1, 20),
    exact=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_counts_keep_their_promises(
    name: str, grid: tuple[int, int], ratio: float, minimum_block: int, exact: bool, seed: int
) -> None:
    target = target_count(grid, ratio)
    room = capacity(name, grid, ratio, minimum_block, exact)
    drawn = [
        MASKERS[name](
            np.random.default_rng(seed),
            grid,
            ratio=ratio,
            minimum_block=minimum_block,
            exact=exact,
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])  # a pure function of the draws
    count = int(drawn[0].sum())
    assert drawn[0].shape == grid and drawn[0].dtype == np.bool_
    assert 1 <= count <= room <= grid[0] * grid[1]
    if exact or name == "random":
        assert count == target == room
    elif name == "blockwise":
        assert target - min(minimum_block, target) < count <= target
    else:
        assert count > target or count == grid[0] * grid[1]


@names
def test_every_patch_can_be_masked_on_a_rectangle(name: str) -> None:
    generator = np.random.default_rng(6)
    often = np.mean([MASKERS[name](generator, (4, 9), minimum_block=4) for _ in range(800)], axis=0)
    assert often.min() > 0


@pytest.mark.parametrize(
    ("grid", "ratio", "count", "target"),
    [
        (PAPER_GRID, 0.4, None, 78),
        (PAPER_GRID, 0.4, 75, 75),
        (PAPER_GRID, 0.3, None, 58),  # of 58.8
        ((10, 10), 0.29, None, 29),
        ((1, 1), 0.4, None, 1),
        ((2, 3), 1.0, None, 6),
    ],
)
def test_target_count(grid: tuple[int, int], ratio: float, count: int | None, target: int) -> None:
    assert target_count(grid, ratio, count) == target


def test_impossible_targets_are_the_users_mistake() -> None:
    for ratio, count in ((0.0, None), (1.1, None), (0.4, 0), (0.4, 197)):
        with pytest.raises(UserError):
            target_count(PAPER_GRID, ratio, count)
    with pytest.raises(UserError, match="there is no masking 'blocks'"):
        capacity("blocks", PAPER_GRID)


def test_capacities_at_the_papers_size() -> None:
    assert capacity("blockwise", PAPER_GRID, count=75) == 75
    assert capacity("blockwise-paper", PAPER_GRID, 0.4) == 78 + 16
    assert capacity("blockwise-paper", PAPER_GRID, 0.4, exact=True) == 78
    assert capacity("random", PAPER_GRID, 0.4) == 78


def test_lists_of_many_masks_are_those_of_each() -> None:
    masks = np.random.default_rng(0).random((2, 5, 4, 3)) < 0.4
    index, weight = place_list(masks, 12)
    assert index.shape == weight.shape == (2, 5, 12)
    for where in np.ndindex(2, 5):
        alone = place_list(masks[where], 12)
        assert index[where].tolist() == alone[0].tolist()
        assert weight[where].tolist() == alone[1].tolist()


def test_place_list_lists_masked_places_in_order_and_pads() -> None:
    mask = np.array([[False, True, False], [True, False, True]])
    index, weight = place_list(mask, 5)
    assert index.dtype == np.int64 and weight.dtype == np.float32
    assert index.tolist() == [1, 3, 5, 0, 0]
    assert weight.tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(UserError, match="3 patches does not fit a list of 2"):
        place_list(mask, 2)


def left_half(generator: np.random.Generator, grid: Grid, **settings: Any) -> Mask:
    del generator, settings
    mask = np.zeros(grid, np.bool_)
    mask[:, : grid[1] // 2] = True
    return mask


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maskers are forgotten after the test."""
    monkeypatch.setattr(beit.masking, "MASKERS", dict(MASKERS))
    monkeypatch.setattr(beit.masking, "_CAPACITIES", {})


@pytest.mark.usefixtures("registered")
def test_a_masker_of_ones_own_has_room() -> None:
    register("left", left_half)
    assert capacity("left", (4, 6)) == 24
    register("left", left_half, lambda grid, **settings: grid[0] * (grid[1] // 2))
    assert capacity("left", (4, 6)) == 12
    register("left", left_half, lambda grid, **settings: 0)
    with pytest.raises(UserError, match="capacity of the masking 'left' is 0"):
        capacity("left", (4, 6))


@pytest.mark.usefixtures("registered")
def test_what_cannot_be_registered_is_told() -> None:
    for name, masker in (("random", left_half), ("none", left_half), ("", left_half), ("x", None)):
        with pytest.raises(UserError):
            register(name, masker)  # type: ignore[arg-type]
    assert set(beit.masking.MASKERS) == set(MASKERS)
