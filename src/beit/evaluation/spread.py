"""What several seeds or draws gave: mean and standard deviation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """What several draws gave."""

    mean: float
    deviation: float | None  # standard deviation over draws (n - 1 below); None for one draw
    count: int


def spread(values: Sequence[float]) -> Spread:
    """The mean of some values and their standard deviation."""
    assert len(values), "a mean needs a value"
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else None
    return Spread(float(array.mean()), deviation, len(array))
