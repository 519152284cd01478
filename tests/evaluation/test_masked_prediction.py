"""Masked prediction and its baselines equal obvious slow versions."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from beit.batch import ImageBatch, Masks
from beit.errors import UserError
from beit.evaluation.masked_prediction import (
    MaskedPrediction,
    entropy_of_counts,
    evaluate_masked_prediction,
    nearest_visible,
)

VOCABULARY, HEIGHT, WIDTH, CAPACITY = 6, 3, 5, 11


def _masks(generator: torch.Generator, count: int) -> Masks:
    grid = torch.rand(count, HEIGHT, WIDTH, generator=generator) < 0.5
    grid[:, 0, 0] = False  # something stays visible, and padding points at it
    index = torch.zeros(count, CAPACITY, dtype=torch.int64)
    weight = torch.zeros(count, CAPACITY)
    for row in range(count):
        places = grid[row].flatten().nonzero().flatten()[:CAPACITY]
        index[row, : len(places)] = places
        weight[row, : len(places)] = 1
    return Masks(grid, index, weight)


def _batch(generator: torch.Generator, count: int) -> tuple[ImageBatch, Tensor, Tensor]:
    """A batch whose codes travel in the token view, with random codes and logits."""
    codes = torch.randint(VOCABULARY, (count, HEIGHT, WIDTH), generator=generator)
    logits = torch.randn(count, CAPACITY, VOCABULARY, generator=generator)
    index = torch.arange(count)
    batch = ImageBatch(
        index, torch.zeros_like(index), logits, codes, None, _masks(generator, count)
    )
    return batch, codes, logits


def _logits(batch: ImageBatch) -> Tensor:
    assert batch.patch_view is not None
    return batch.patch_view


def _codes(batch: ImageBatch) -> Tensor:
    assert batch.token_view is not None
    return batch.token_view


def slow_copy(mask: Tensor, codes: Tensor, place: int) -> int | None:
    """The code of the nearest visible patch, by looking at all of them in order."""
    row, column = divmod(place, WIDTH)
    best: tuple[float, int] | None = None
    for y in range(HEIGHT):
        for x in range(WIDTH):
            distance = math.hypot(y - row, x - column)
            if not mask[y, x] and (best is None or distance < best[0] - 1e-9):
                best = (distance, int(codes[y, x]))
    return None if best is None else best[1]


def slow_evaluation(parts: list[tuple[ImageBatch, Tensor, Tensor]]) -> dict[str, float]:
    losses, right, copied, masked = [], [], [], []
    everywhere: Counter[int] = Counter()
    for batch, codes, logits in parts:
        assert batch.masks is not None
        everywhere.update(codes.flatten().tolist())
        for row, (index, weight) in enumerate(
            zip(batch.masks.index, batch.masks.weight, strict=True)
        ):
            for position, place in enumerate(index.tolist()):
                if weight[position] == 0:
                    continue
                true = int(codes[row].flatten()[place])
                scores = logits[row, position].double()
                losses.append(float(scores.logsumexp(0) - scores[true]))
                right.append(int(scores.argmax()) == true)
                copied.append(slow_copy(batch.masks.grid[row], codes[row], place) == true)
                masked.append(true)
    shares = np.array(list(everywhere.values())) / sum(everywhere.values())
    favourite = max(range(VOCABULARY), key=lambda code: everywhere[code])
    return {
        "places": len(losses),
        "accuracy": float(np.mean(right)),
        "loss": float(np.mean(losses)),
        "marginal_entropy": float(-(shares * np.log(shares)).sum()),
        "most_frequent_accuracy": float(np.mean([true == favourite for true in masked])),
        "neighbour_copy_accuracy": float(np.mean(copied)),
    }


@pytest.fixture
def parts() -> list[tuple[ImageBatch, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [_batch(generator, count) for count in (4, 4, 1)]


def _evaluate(
    parts: list[tuple[ImageBatch, Tensor, Tensor]], counts: Tensor | None = None
) -> MaskedPrediction:
    batches = [batch for batch, _, _ in parts]
    return evaluate_masked_prediction(batches, _logits, _codes, VOCABULARY, counts)


def test_equals_the_slow_version(parts: list[tuple[ImageBatch, Tensor, Tensor]]) -> None:
    found = _evaluate(parts)
    for name, value in slow_evaluation(parts).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-6), name
    assert found.pictures == 9
    saved = (found.marginal_entropy - found.loss) / math.log(2)
    assert found.bits_saved == pytest.approx(saved)
    assert found.metrics()["accuracy"] == found.accuracy


def test_the_split_into_batches_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    whole, codes, logits = _batch(generator, 6)
    assert whole.masks is not None
    halves = []
    for part in (slice(0, 4), slice(4, 6)):
        masks = Masks(whole.masks.grid[part], whole.masks.index[part], whole.masks.weight[part])
        batch = ImageBatch(
            whole.index[part], whole.epoch[part], logits[part], codes[part], None, masks
        )
        halves.append((batch, codes[part], logits[part]))
    together, apart = _evaluate([(whole, codes, logits)]), _evaluate(halves)
    assert together.metrics() == pytest.approx(apart.metrics())


def test_a_perfect_prediction_saves_the_whole_entropy(
    parts: list[tuple[ImageBatch, Tensor, Tensor]],
) -> None:
    def knows(batch: ImageBatch) -> Tensor:
        assert batch.masks is not None
        true = batch.masks.gather(_codes(batch).flatten(1))
        return 50.0 * torch.nn.functional.one_hot(true, VOCABULARY)

    found = evaluate_masked_prediction([part[0] for part in parts], knows, _codes, VOCABULARY)
    assert found.accuracy == 1
    assert found.bits_saved == pytest.approx(found.marginal_entropy / math.log(2))


def test_the_best_constant_prediction_reaches_the_constant_loss(
    parts: list[tuple[ImageBatch, Tensor, Tensor]],
) -> None:
    masked = [
        int(code)
        for batch, codes, _ in parts
        if batch.masks is not None
        for code in batch.masks.gather(codes.flatten(1))[batch.masks.weight > 0]
    ]
    shares = torch.bincount(torch.tensor(masked), minlength=VOCABULARY) / len(masked)

    def constant(batch: ImageBatch) -> Tensor:
        return shares.log().expand(len(batch.index), CAPACITY, VOCABULARY)

    found = evaluate_masked_prediction([part[0] for part in parts], constant, _codes, VOCABULARY)
    assert found.loss == pytest.approx(found.constant_loss, abs=1e-6)
    assert found.accuracy == pytest.approx(float(shares.max()))


def test_training_counts_choose_the_most_frequent_code(
    parts: list[tuple[ImageBatch, Tensor, Tensor]],
) -> None:
    own = _evaluate(parts)
    counts = torch.zeros(VOCABULARY)
    seen = []
    for code in range(VOCABULARY):
        seen.append(_evaluate(parts, counts.index_fill(0, torch.tensor(code), 9)))
    accuracies = [found.most_frequent_accuracy for found in seen]
    assert sum(accuracies) == pytest.approx(1)
    assert own.most_frequent_accuracy in accuracies


def test_nearest_visible_breaks_ties_by_place_and_knows_when_there_is_none() -> None:
    mask = torch.tensor([[[0, 1, 0], [1, 1, 1], [0, 1, 1]], [[1] * 3] * 3]).bool()
    nearest = nearest_visible(mask)
    #  place 1 lies between 0 and 2, place 3 between 0 and 6, place 4 between all three corners
    assert nearest[0].tolist() == [0, 0, 2, 0, 0, 2, 6, 6, 2]
    assert nearest[1].tolist() == [-1] * 9


def test_nothing_visible_is_never_right() -> None:
    codes = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int64)
    places = torch.arange(CAPACITY)[None]
    masks = Masks(codes == 0, places, torch.ones(1, CAPACITY))
    logits = torch.zeros(1, CAPACITY, VOCABULARY)
    batch = ImageBatch(torch.zeros(1), torch.zeros(1), logits, codes, None, masks)
    found = _evaluate([(batch, codes, logits)])
    assert found.neighbour_copy_accuracy == 0
    assert found.most_frequent_accuracy == 1
    assert found.marginal_entropy == 0


def test_no_picture_and_no_mask_are_named() -> None:
    with pytest.raises(UserError, match="no picture"):
        _evaluate([])
    batch, codes, logits = _batch(torch.Generator().manual_seed(0), 1)
    assert batch.masks is not None
    batch.masks.weight.zero_()
    with pytest.raises(UserError, match="No patch is masked"):
        _evaluate([(batch, codes, logits)])


def test_entropy_of_counts() -> None:
    assert entropy_of_counts(torch.tensor([5, 5, 0, 5, 5])) == pytest.approx(math.log(4))
    assert entropy_of_counts(torch.tensor([0, 7])) == 0
