"""Which patches to hide: (generator, grid) -> mask, on the host and a pure function of the draws.

Three maskers with one signature: blockwise as the authors' code does it, blockwise as the paper
writes it (algorithm 1), and uniformly random (the ablation). All take a target, either as a share
of the patches or as a count; the paper says 0.4 of 196, which is 78, the authors' code says 75.
Others are made known by `register`.
"""

# (h, w) patch grid, N = h * w patches, M length of the list of masked places

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from beit.errors import UserError

Mask = NDArray[np.bool_]
Grid = tuple[int, int]
Draws = Iterator[list[float]]  # of uniform numbers, four for a block

ATTEMPTS = 10  # a block, before the reference gives up
_AHEAD = 16  # attempts whose draws are fetched at once; a mask at 14 x 14 takes 11 on average
SMALLEST_ASPECT = 0.3  # height / width of a block, and its inverse the largest
NO_MASK = "none"  # the name of masking nothing


class Masker(Protocol):
    """Draws one mask: (h, w) bool, True = masked, at least one patch."""

    def __call__(
        self,
        generator: np.random.Generator,
        grid: Grid,
        *,
        ratio: float = 0.4,
        minimum_block: int = 16,
        exact: bool = False,
        count: int | None = None,
    ) -> Mask:
        """Draw.

        Args:
            generator: The sample's own (law 1).
            grid: (h, w) patches.
            ratio: Target as a share of the patches, rounded down.
            minimum_block: Patches of the smallest block; blocks only.
            exact: Mask the target count exactly, instead of what the algorithm happens to reach.
            count: Target as a number of patches; wins over the ratio.
        """
        ...


def target_count(grid: Grid, ratio: float, count: int | None = None) -> int:
    """The number of patches to mask: `count` if given, else the ratio of N rounded down, >= 1.

    Raises:
        UserError: The ratio is outside (0, 1], or the count outside [1, N].
    """
    patches = grid[0] * grid[1]
    if count is None:
        if not 0 < ratio <= 1:
            raise UserError(f"a masking ratio must lie in (0, 1], not {ratio}")
        return max(1, math.floor(ratio * patches + 1e-9))  # 0.29 * 100 is 28.999999999999996
    if not 1 <= count <= patches:
        raise UserError(f"cannot mask {count} of {patches} patches: choose 1 to {patches}")
    return count


def uniform_random(
    generator: np.random.Generator,
    grid: Grid,
    *,
    ratio: float = 0.4,
    minimum_block: int = 16,
    exact: bool = False,
    count: int | None = None,
) -> Mask:
    """Mask exactly the target count, every set of patches being equally likely.

    Arguments as in `Masker`; there are no blocks, and the count is exact in any case.
    """
    mask = np.zeros(grid[0] * grid[1], dtype=np.bool_)
    mask[generator.permutation(mask.size)[: target_count(grid, ratio, count)]] = True
    return mask.reshape(grid)


def blockwise_reference(
    generator: np.random.Generator,
    grid: Grid,
    *,
    ratio: float = 0.4,
    minimum_block: int = 16,
    exact: bool = False,
    count: int | None = None,
) -> Mask:
    """Blockwise masking as the authors' code does it; the target is a cap, often not reached.

    A block's area is uniform between `minimum_block` and what remains, its aspect ratio
    log-uniform; its sides must be smaller than the grid's and it must mask something new but not
    more than remains. After ten failed attempts the mask is left as it is.

    Departure: the reference's constants suit 14 x 14. On small or thin grids, where whole blocks
    may never fit, `minimum_block` is lowered to the target, and while a minimum block still
    remains to be masked a failed round is followed by a block cut down to fit. Neither changes
    anything of note at 14 x 14, and no mask stops short by more than a minimum block.

    Arguments as in `Masker`.
    """
    target = target_count(grid, ratio, count)
    smallest = min(minimum_block, target)
    # What stands behind the last block's draws is used by `_exactly` alone.
    draws, patches = _fours(generator, 1 if exact else _AHEAD), _Patches(*grid)
    remaining = target
    while remaining > 0:
        added = _reference_block(draws, patches, smallest, remaining)
        if added == 0 and remaining < smallest:
            break
        remaining -= added or _fitting_block(draws, patches, smallest, remaining)
    mask = patches.as_array()
    return _exactly(generator, mask, target) if exact else mask


def _fours(generator: np.random.Generator, ahead: int) -> Iterator[list[float]]:
    """Uniform numbers by fours, fetched several at once: a call of numpy's is what costs here."""
    while True:
        yield from generator.random((ahead, 4)).tolist()


@dataclass
class _Patches:
    """The patches of a grid, row-major, as the bits of one number: fast to count and to join."""

    height: int
    width: int
    masked: int = 0

    def add_block(self, height: int, width: int, down: float, right: float, most: int) -> int:
        """Mask a block placed uniformly, if 1 to `most` of its patches are new; how many were."""
        top = int(down * (self.height - height + 1))
        left = int(right * (self.width - width + 1))
        block = _block_bits(height, width, self.width) << (top * self.width + left)
        new = (block & ~self.masked).bit_count()
        if not 0 < new <= most:
            return 0
        self.masked |= block
        return new

    def as_array(self) -> Mask:
        """(h, w) bool."""
        size = self.height * self.width
        packed = np.frombuffer(self.masked.to_bytes(-(-size // 8), "little"), np.uint8)
        bits = np.unpackbits(packed, count=size, bitorder="little")
        return bits.view(np.bool_).reshape(self.height, self.width)


@lru_cache(maxsize=4096)
def _block_bits(height: int, width: int, grid_width: int) -> int:
    """A block in the upper left corner of a grid."""
    return sum(((1 << width) - 1) << (row * grid_width) for row in range(height))


def _reference_block(draws: Draws, patches: _Patches, smallest: int, remaining: int) -> int:
    """Try to mask one more block; the number of patches newly masked, 0 on failure."""
    for area, aspect, down, right in islice(draws, ATTEMPTS):
        height, width = _block_sides(area, aspect, smallest, remaining)
        if not (0 < height < max(2, patches.height) and 0 < width < max(2, patches.width)):
            continue
        added = patches.add_block(height, width, down, right, remaining)
        if added:
            return added
    return 0


def _fitting_block(draws: Draws, patches: _Patches, smallest: int, remaining: int) -> int:
    """Mask one block cut down to the grid and to what remains; the patches newly masked."""
    area, aspect, down, right = next(draws)
    height, width = _block_sides(area, aspect, smallest, remaining)
    height = max(1, min(height, patches.height - 1, remaining))
    width = max(1, min(width, patches.width - 1, remaining // height))
    return patches.add_block(height, width, down, right, remaining)


def _block_sides(area: float, aspect: float, smallest: int, remaining: int) -> tuple[int, int]:
    """Sides for two uniform draws; an area between `smallest` and `remaining`, either way round."""
    patches = smallest + area * (remaining - smallest)
    ratio = SMALLEST_ASPECT ** (1 - 2 * aspect)  # log-uniform
    return round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio))


def _placed(mask: Mask, height: int, width: int, down: float, right: float) -> Mask:
    """The view of a block placed uniformly, the last row and column included."""
    top = int(down * (mask.shape[0] - height + 1))
    left = int(right * (mask.shape[1] - width + 1))
    return mask[top : top + height, left : left + width]


def blockwise_paper(
    generator: np.random.Generator,
    grid: Grid,
    *,
    ratio: float = 0.4,
    minimum_block: int = 16,
    exact: bool = False,
    count: int | None = None,
) -> Mask:
    """Algorithm 1 of the paper: add blocks until *more* than the target is masked.

    A block's area is uniform between `minimum_block` and what remains (a minimum block if less
    remains), its aspect ratio uniform in [0.3, 1 / 0.3].

    Departure: the paper does not say how the sides become whole numbers nor what happens to a
    block larger than the image. Here they are rounded down (and at least 1) and cut to the grid.
    As with the reference, `minimum_block` is at most the target.

    Arguments as in `Masker`.
    """
    target = target_count(grid, ratio, count)
    smallest = min(minimum_block, target)
    mask = np.zeros(grid, dtype=np.bool_)
    masked = 0
    while masked <= target and masked < mask.size:
        draws = generator.random(4).tolist()
        patches = smallest + draws[0] * max(0, target - masked - smallest)
        aspect = SMALLEST_ASPECT + draws[1] * (1 / SMALLEST_ASPECT - SMALLEST_ASPECT)
        height = min(grid[0], max(1, int(math.sqrt(patches * aspect))))
        width = min(grid[1], max(1, int(math.sqrt(patches / aspect))))
        _placed(mask, height, width, draws[2], draws[3])[:] = True
        masked = int(np.count_nonzero(mask))
    return _exactly(generator, mask, target) if exact else mask


MASKERS: dict[str, Masker] = {
    "blockwise": blockwise_reference,
    "blockwise-paper": blockwise_paper,
    "random": uniform_random,
}
Capacity = Callable[..., int]  # (grid, *, ratio, minimum_block, exact, count) -> M
_OURS = frozenset((*MASKERS, NO_MASK))
_CAPACITIES: dict[str, Capacity] = {}  # of the registered ones that say so


def register(name: str, masker: Masker, capacity: Capacity | None = None) -> None:
    """Make a masker known, so that `masking.kind` of a recipe may be its name.

        def half(generator, grid, **settings):
            mask = np.zeros(grid, bool)
            mask[:, : grid[1] // 2] = True
            return mask if generator.random() < 0.5 else ~mask

        beit.masking.register("half", half)

    A run's recipe holds the name alone: whatever reads it again (a resumption, a report) has to
    have registered it too. A name of one's own may be given again, to another masker.

    Args:
        name: Not one of beit's own.
        masker: (generator, grid, *, ratio, minimum_block, exact, count) to a mask (h, w) of bool,
            True = masked, of one patch or more; see `Masker`. It may draw from the generator alone.
        capacity: (grid, *, ratio, minimum_block, exact, count) to the most patches it ever masks.
            Every mask takes the memory and work of so many. None: it may mask every patch.

    Raises:
        UserError: The name is taken or no text, or what is given is no function.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"a masking is registered under a name, a text, not {name!r}")
    if name in _OURS:
        raise UserError(f"the masking {name!r} is beit's own; register yours under another name")
    for given in (masker, capacity):
        if not (callable(given) or given is None and masker is not None):
            raise UserError(f"the masking {name!r} needs functions, and {given!r} is none")
    MASKERS[name] = masker
    _CAPACITIES.pop(name, None)
    if capacity is not None:
        _CAPACITIES[name] = capacity


def masker_named(name: str) -> Masker:
    """The masker of that name.

    Raises:
        UserError: There is none; the sentence lists those there are.
    """
    if name not in MASKERS:
        names = ", ".join(repr(known) for known in (*MASKERS, NO_MASK))
        raise UserError(
            f"there is no masking {name!r}: choose one of {names}, or register your own by "
            "beit.masking.register"
        )
    return MASKERS[name]


def _exactly(generator: np.random.Generator, mask: Mask, target: int) -> Mask:
    """Add or remove patches at the edges of what is masked until exactly `target` are.

    Each is chosen uniformly from the patches that share a side with the other kind, so that the
    mask stays made of blocks.
    """
    masked = int(np.count_nonzero(mask))
    if masked <= target:
        return _grown(generator, mask, target - masked)
    return ~_grown(generator, ~mask, masked - target)


def _grown(generator: np.random.Generator, mask: Mask, missing: int) -> Mask:
    mask = mask.copy()
    while missing > 0:
        edge = np.flatnonzero(_neighbours(mask) & ~mask)
        if len(edge) == 0:  # nothing is masked yet
            edge = np.flatnonzero(~mask)
        chosen = generator.permutation(edge)[:missing]
        mask.reshape(-1)[chosen] = True
        missing -= len(chosen)
    return mask


def _neighbours(mask: Mask) -> Mask:
    near = np.zeros_like(mask)
    near[1:] |= mask[:-1]
    near[:-1] |= mask[1:]
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    return near


def capacity(
    name: str,
    grid: Grid,
    ratio: float = 0.4,
    minimum_block: int = 16,
    exact: bool = False,
    count: int | None = None,
) -> int:
    """M: what no mask of these settings exceeds, so that lists of places have one length.

    Algorithm 1 may exceed its target by a minimum block: the last block is drawn when at most the
    target is masked, and is no larger than what remains, or than a minimum block.

    Raises:
        UserError: The masker is unknown or the target impossible.
    """
    masker_named(name)
    target = target_count(grid, ratio, count)
    patches = grid[0] * grid[1]
    if name == "blockwise-paper" and not exact:
        return min(patches, target + min(minimum_block, target))
    if name in _OURS:
        return target
    if name not in _CAPACITIES:
        return patches
    settings = {"ratio": ratio, "minimum_block": minimum_block, "exact": exact, "count": count}
    room = _CAPACITIES[name](grid, **settings)
    if not isinstance(room, int) or not 1 <= room <= patches:
        raise UserError(
            f"the capacity of the masking {name!r} is {room!r} where there are {patches} patches: "
            f"it must be a whole number from 1 to {patches}"
        )
    return room


def place_list(masks: Mask, capacity: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The masked places of each mask, row-major, as a list of fixed length.

    Args:
        masks: (..., h, w) bool, each with at most `capacity` masked patches.
        capacity: M.

    Returns:
        (..., M) int64 patch numbers, padded with 0, and (..., M) float32 weights: 1, and 0 at
        padding.

    Raises:
        UserError: A mask has more.
    """
    leading = masks.shape[:-2]
    flat = masks.reshape(math.prod(leading), -1)
    rows, places = np.nonzero(flat)
    counts = np.bincount(rows, minlength=len(flat))
    if counts.max() > capacity:
        raise UserError(
            f"a mask of {counts.max()} patches does not fit a list of {capacity}: raise the "
            "capacity that its masking was registered with, or leave it out"
        )
    columns = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    index = np.zeros((len(flat), capacity), dtype=np.int64)
    weight = np.zeros((len(flat), capacity), dtype=np.float32)
    index[rows, columns] = places
    weight[rows, columns] = 1.0
    return index.reshape(*leading, capacity), weight.reshape(*leading, capacity)
