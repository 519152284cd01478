"""Which pictures a step trains on: a pure function of how many were seen (law 1).

The run is one endless line of global positions. Position p belongs to epoch p // size, and there to
the picture that the epoch's keyed permutation puts at p % size. A step takes the next B positions,
rank r of W the r-th of W equal runs of them, micro-step m of A the m-th of A equal runs of those.
Neither ranks nor accumulation nor workers change what a step trains on, and `samples_seen` is the
whole state.

Departure: the reference leaves out the pictures of an epoch that fill no whole batch; here a batch
goes on into the next epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from beit.errors import UserError
from beit.randomness import epoch_order

_BLOCK = 4096  # positions whose pictures are worked out at once


@dataclass(frozen=True)
class Shares:
    """How the global batch is cut: rank by rank, and within a rank micro-step by micro-step."""

    batch_size: int  # B, over all ranks and micro-steps
    ranks: int = 1
    rank: int = 0
    accumulation: int = 1

    def __post_init__(self) -> None:
        parts = self.ranks * self.accumulation
        if min(self.batch_size, self.ranks, self.accumulation) < 1:
            raise UserError("batch size, ranks and accumulation must be at least 1")
        if self.batch_size % parts:
            near = max(parts, round(self.batch_size / parts) * parts)
            raise UserError(
                f"a batch of {self.batch_size} cannot be cut into {self.ranks} ranks x "
                f"{self.accumulation} accumulation steps; {near} can"
            )
        assert 0 <= self.rank < self.ranks

    @property
    def micro_batch_size(self) -> int:
        """Samples a rank takes at once."""
        return self.batch_size // (self.ranks * self.accumulation)

    def rows(self, micro_step: int) -> range:
        """The rows of the global batch that micro-step `micro_step` of this rank takes."""
        start = (self.rank * self.accumulation + micro_step) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


def positions(shares: Shares, samples_seen: int) -> Iterator[range]:
    """The global positions of this rank's micro-batches, for ever, from `samples_seen` on."""
    while True:
        for micro_step in range(shares.accumulation):
            rows = shares.rows(micro_step)
            yield range(samples_seen + rows.start, samples_seen + rows.stop)
        samples_seen += shares.batch_size


def locate(
    seed: int, size: int, where: range, *, shuffled: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Epochs and picture indices of a run of global positions, each (len(where),)."""
    line = np.arange(where.start, where.stop, dtype=np.int64)
    epochs, places = np.divmod(line, size)
    if not shuffled:
        return epochs, places
    indices = np.empty_like(places)
    blocks = places // _BLOCK
    for epoch, block in sorted(set(zip(epochs.tolist(), blocks.tolist(), strict=True))):
        here = (epochs == epoch) & (blocks == block)
        indices[here] = _order_block(seed, epoch, size, block)[places[here] - block * _BLOCK]
    return epochs, indices


@lru_cache(maxsize=4)
def _order_block(seed: int, epoch: int, size: int, block: int) -> NDArray[np.int64]:
    """A block of an epoch's order: the permutation costs little more for it than for a batch."""
    start = block * _BLOCK
    return epoch_order(seed, epoch, size)(np.arange(start, min(start + _BLOCK, size)))
