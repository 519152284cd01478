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
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from beit.randomness import epoch_order
from beit.shares import Shares

_BLOCK = 4096  # positions whose pictures are worked out at once


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
