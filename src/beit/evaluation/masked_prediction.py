"""How well masked visual tokens are predicted, against guesses that need no learning.

The accuracy alone says little: a collapsed tokenizer is easy to predict. So it stands beside the
accuracy of always naming the most frequent code and of copying the nearest visible patch, and the
loss beside the entropy of the codes: what the context saves, in bits a masked patch.
Legend: B images, (h, w) patch grid, N = h * w patches, M listed places, K codes.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from beit.batch import ImageBatch, Masks
from beit.errors import UserError
from beit.evaluation.ranks import summed_over_ranks


@dataclass(frozen=True)
class MaskedPrediction:
    """The result over a whole evaluation set; entropies and losses are in nats a patch."""

    pictures: int
    places: int  # masked patches that were predicted
    accuracy: float  # share of them predicted rightly
    loss: float  # cross-entropy
    marginal_entropy: float  # H(q̄), q̄ the share of each code among all patches
    constant_loss: float  # the least loss a prediction blind to the picture could have there
    bits_saved: float  # (H(q̄) - loss) / ln 2
    most_frequent_accuracy: float  # always the most frequent code
    neighbour_copy_accuracy: float  # the code of the nearest visible patch

    def metrics(self) -> dict[str, float]:
        """The values by name, for a metrics file or a table."""
        return asdict(self)


@dataclass
class _Sums:
    """Running sums, on the device until the end."""

    vocabulary: int
    pictures: int = 0
    right: Tensor | float = 0.0
    copied: Tensor | float = 0.0
    loss: Tensor | float = 0.0
    all_counts: Tensor | float = 0.0  # (K,) over all patches
    masked_counts: Tensor | float = 0.0  # (K,) over masked patches


@torch.inference_mode()
def evaluate_masked_prediction(
    batches: Iterable[ImageBatch],
    predict_logits: Callable[[ImageBatch], Tensor],
    codes: Callable[[ImageBatch], Tensor],
    vocabulary: int,
    training_counts: Tensor | None = None,
) -> MaskedPrediction:
    """Measure masked-token prediction and its baselines over a whole set.

    With a process group every rank must call this with its share of the set.

    Args:
        batches: Prepared batches with masks, already where the callables want them.
        predict_logits: Gives (B, M, K) scores of the codes at the listed places; in evaluation
            mode, which is the caller's to see to.
        codes: Gives the true codes (B, h, w).
        vocabulary: K.
        training_counts: (K,) how often each code occurs in the training set, to choose the most
            frequent one; without it the evaluation set's own is taken, which flatters that
            baseline a little.

    Raises:
        UserError: No place is masked in the whole set.
    """
    sums = _Sums(vocabulary)
    for batch in batches:
        assert batch.masks is not None, "masked prediction needs masks"
        _add(sums, batch.masks, predict_logits(batch), codes(batch))
    return _result(*_over_ranks(sums), training_counts)


def _add(sums: _Sums, masks: Masks, logits: Tensor, codes: Tensor) -> None:
    flat = codes.flatten(1)  # (B, N)
    targets, weight = masks.gather(flat), masks.weight
    assert logits.shape == (*targets.shape, sums.vocabulary), "logits are (B, M, K)"
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    ).view_as(weight)
    copies = masks.gather(copy_of_nearest_visible(flat, masks.grid))
    sums.pictures += len(codes)
    sums.loss += (losses * weight).sum(dtype=torch.float64)
    sums.right += ((logits.argmax(dim=-1) == targets) * weight).sum(dtype=torch.float64)
    sums.copied += ((copies == targets) * weight).sum(dtype=torch.float64)
    sums.all_counts += _count(flat, torch.ones_like(flat), sums.vocabulary)
    sums.masked_counts += _count(targets, weight, sums.vocabulary)


def _count(codes: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
    counts = torch.zeros(vocabulary, dtype=torch.float64, device=codes.device)
    return counts.index_add_(0, codes.flatten(), weight.flatten().double())


def _over_ranks(sums: _Sums) -> tuple[Tensor, Tensor, Tensor]:
    """(4,) pictures, right, copied and loss, then both (K,) counts, of all ranks, on the CPU."""
    numbers = (sums.pictures, sums.right, sums.copied, sums.loss)
    joined = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
    counts = [
        torch.as_tensor(count, dtype=torch.float64).expand(sums.vocabulary).contiguous()
        for count in (sums.all_counts, sums.masked_counts)
    ]
    joined, everywhere, masked = summed_over_ranks(joined, *counts)
    return joined, everywhere, masked


def _result(
    numbers: Tensor, everywhere: Tensor, masked: Tensor, training_counts: Tensor | None
) -> MaskedPrediction:
    pictures, right, copied, lost = numbers.tolist()
    if not pictures:
        raise UserError("There is no picture to evaluate on: the data set is empty.")
    places = float(masked.sum())
    if places == 0:
        raise UserError("No patch is masked in the whole set: set a mask ratio above zero.")
    favourite = int((everywhere if training_counts is None else training_counts.cpu()).argmax())
    loss = lost / places
    marginal = entropy_of_counts(everywhere)
    return MaskedPrediction(
        pictures=round(pictures),
        places=round(places),
        accuracy=right / places,
        loss=loss,
        marginal_entropy=marginal,
        constant_loss=entropy_of_counts(masked),
        bits_saved=(marginal - loss) / math.log(2),
        most_frequent_accuracy=float(masked[favourite]) / places,
        neighbour_copy_accuracy=copied / places,
    )


def entropy_of_counts(counts: Tensor) -> float:
    """The entropy in nats of the distribution that (K,) counts describe."""
    shares = counts.double() / counts.sum()
    return float(torch.special.entr(shares).sum())


def copy_of_nearest_visible(codes: Tensor, mask: Tensor) -> Tensor:
    """Guess each patch's code by copying the nearest patch that is not masked.

    Args:
        codes: (B, N) true codes.
        mask: (B, h, w) bool, True = masked.

    Returns:
        (B, N) copied codes; -1, which is no code, in pictures without any visible patch.
    """
    nearest = nearest_visible(mask)
    copied = codes.gather(1, nearest.clamp(min=0))
    return torch.where(nearest < 0, -1, copied)


def nearest_visible(mask: Tensor) -> Tensor:
    """Find the nearest visible patch of each patch.

    Near is Euclidean on the grid; of several equally near, the first in row-major order; a visible
    patch is nearest to itself.

    Args:
        mask: (B, h, w) bool, True = masked.

    Returns:
        (B, N) int64 row-major indices; -1 in pictures without any visible patch.
    """
    height, width = mask.shape[1:]
    patches = height * width
    places = torch.arange(patches, device=mask.device)
    rows, columns = places // width, places % width
    squared = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2  # (N, N)
    ranks = squared * patches + places  # distance first, then place: no two are equal
    hidden = patches * (height**2 + width**2)  # more than any rank
    visible_ranks = torch.where(mask.flatten(1)[:, None, :], hidden, ranks)  # (B, N, N)
    best = visible_ranks.amin(dim=-1)
    return torch.where(best < hidden, best % patches, -1)
