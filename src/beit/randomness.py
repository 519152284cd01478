"""Counter-based draws: chance as a pure function of where we are, so that no state is saved.

Law 1: a training sample is a pure function of (seed, epoch, index), and chance inside a step of
(seed, step, rank). Every generator here is Philox keyed by those numbers; two draws with different
keys are independent, and a draw does not depend on what was drawn before it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

_MASK64 = (1 << 64) - 1
_ROUNDS = 8  # of the Feistel network; four already give a pseudo-random permutation in theory


@lru_cache(maxsize=1024, typed=True)
def _key(*parts: int | str) -> int:
    """Hash the parts to 128 bits; separated, so that (1, 23) and (12, 3) differ."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


class _KeyWords(ISeedSequence):
    """A key that is handed to Philox as it is.

    Given `key=` instead, numpy first collects entropy that it throws away: 9 us against 2.
    """

    def __init__(self, key: int) -> None:
        self._words = np.array([key & _MASK64, key >> 64], dtype=np.uint64)

    def generate_state(
        self, n_words: int, dtype: DTypeLike | type[np.uint32] | type[np.uint64] = np.uint32
    ) -> NDArray[np.uint64]:
        """The two words of the key."""
        assert n_words == len(self._words) and dtype is np.uint64
        return self._words


@lru_cache(maxsize=1024, typed=True)
def _stream_key(seed: int, stream: str) -> _KeyWords:
    return _KeyWords(_key(seed, stream))


def sample_generator(seed: int, epoch: int, index: int, stream: str) -> np.random.Generator:
    """The generator of one sample's draws.

    Args:
        seed: The run's seed.
        epoch: The pass over the data, from 0.
        index: The sample's place in its source, from 0.
        stream: What is drawn ("crop", "colour", "mask", ...): streams are independent, so a new
            augmentation does not change the draws of the others.
    """
    counter = np.array([0, 0, index & _MASK64, epoch & _MASK64], dtype=np.uint64)
    key = _stream_key(seed, stream)
    return np.random.Generator(np.random.Philox(key, counter=counter))  # type: ignore[arg-type]


def step_seed(seed: int, step: int, rank: int = 0, stream: str = "step") -> int:
    """A 63-bit seed for chance inside a step (dropout, Gumbel noise) on one rank."""
    return _key(seed, step, rank, stream) & (_MASK64 >> 1)


def step_uniform(seed: int, step: int, rows: range, columns: int, stream: str) -> Tensor:
    """Uniform draws for some rows of a step's global batch, the same on any number of ranks.

    Args:
        seed: The run's seed.
        step: The optimiser step.
        rows: The contiguous rows of the global batch that are wanted here.
        columns: Draws a row.
        stream: What the draws are for.

    Returns:
        (len(rows), columns) float32 in [0, 1).
    """
    generator = np.random.Generator(np.random.Philox(key=_key(seed, step, stream)))
    drawn = generator.random((rows.stop, columns), dtype=np.float32)
    return torch.from_numpy(drawn[rows.start : rows.stop])


@dataclass(frozen=True)
class KeyedPermutation:
    """A pseudo-random permutation of range(size) that needs no memory.

    A Feistel network over the next even power of two, walked until it lands inside the range: the
    image of any position is found in constant time, for ten million pictures as for ten.
    """

    size: int
    key: int

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map positions in [0, size) to indices in [0, size), one to one."""
        if len(positions) and not (0 <= positions.min() and positions.max() < self.size):
            raise IndexError(f"positions must lie in [0, {self.size})")
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)
        values = self._feistel(positions.astype(np.uint64), half)
        outside = values >= self.size
        while outside.any():
            values[outside] = self._feistel(values[outside], half)
            outside = values >= self.size
        return values.astype(np.int64)

    def _feistel(self, values: NDArray[np.uint64], half: int) -> NDArray[np.uint64]:
        mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
        left, right = values >> shift, values & mask
        for round_key in self._round_keys():
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << shift) | right

    def _round_keys(self) -> Iterator[np.uint64]:
        for number in range(_ROUNDS):
            yield np.uint64(_key(self.key, number) & _MASK64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def epoch_order(seed: int, epoch: int, size: int) -> KeyedPermutation:
    """The order in which epoch `epoch` visits a source of `size` samples."""
    return KeyedPermutation(size, _key(seed, epoch, "order"))
