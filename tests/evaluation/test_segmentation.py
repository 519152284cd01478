"""Mean IoU is torchmetrics', a written-out one's, and the same however pictures are shared out."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from beit.errors import UserError
from beit.evaluation.segmentation import SegmentationScore

CLASSES, PICTURES = 6, 11


def _pictures() -> list[tuple[Tensor, Tensor]]:
    """Predictions and masks of different sizes; class 4 is only predicted, class 5 nowhere."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(PICTURES):
        size = (5 + number, 9 - number % 4)
        mask = torch.randint(0, 4, size, generator=generator)
        guess = torch.randint(0, 5, size, generator=generator)
        prediction = torch.where(torch.rand(size, generator=generator) < 0.6, mask, guess)
        mask[torch.rand(size, generator=generator) < 0.1] = 255
        found.append((prediction.to(torch.uint8), mask.to(torch.uint8)))
    return found


def _score(pictures: list[tuple[Tensor, Tensor]]) -> SegmentationScore:
    score = SegmentationScore(CLASSES)
    for prediction, mask in pictures:
        score.update(prediction, mask)
    return score


def _written_out(pictures: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """A confusion matrix, pixel by pixel."""
    counts = [[0] * CLASSES for _ in range(CLASSES)]
    for prediction, mask in pictures:
        for answer, truth in zip(
            prediction.flatten().tolist(), mask.flatten().tolist(), strict=True
        ):
            if truth != 255:
                counts[truth][answer] += 1
    iou: list[float | None] = []
    recall = []
    for k in range(CLASSES):
        row, column = sum(counts[k]), sum(line[k] for line in counts)
        union = row + column - counts[k][k]
        iou.append(counts[k][k] / union if union else None)
        recall += [counts[k][k] / row] if row else []
    there = [value for value in iou if value is not None]
    right = sum(counts[k][k] for k in range(CLASSES))
    return {
        "miou": sum(there) / len(there),
        "pixel_accuracy": right / sum(map(sum, counts)),
        "mean_class_accuracy": sum(recall) / len(recall),
        "iou": iou,
    }


def _assert_same(one: dict[str, Any], other: dict[str, Any], within: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name, value in other.items():
        assert one[name] == pytest.approx(value, abs=within), name


def test_the_figures_are_those_of_a_written_out_confusion_matrix() -> None:
    found, expected = _score(_pictures()).compute(), _written_out(_pictures())
    _assert_same(found, expected)
    assert found["iou"][5] is None and found["iou"][4] == 0
    assert type(found["miou"]) is type(found["pixel_accuracy"]) is float


def test_the_figures_are_those_of_torchmetrics() -> None:
    found = _score(_pictures()).compute()
    for average, name in (("macro", "miou"), ("none", "iou")):
        theirs = MulticlassJaccardIndex(CLASSES, average=average, ignore_index=255)  # type: ignore[arg-type]
        for prediction, mask in _pictures():
            theirs.update(prediction[None].long(), mask[None].long())
        expected = theirs.compute().tolist()
        ours = [value or 0.0 for value in found["iou"]] if name == "iou" else found[name]
        assert ours == pytest.approx(expected, abs=1e-6)


def test_it_is_the_index_of_the_set_and_not_a_mean_over_pictures() -> None:
    small, large = torch.zeros(1, 4, dtype=torch.uint8), torch.zeros(10, 10, dtype=torch.uint8)
    large[5:] = 1
    score = SegmentationScore(2)
    score.update(1 - small, small)  # all wrong
    score.update(large, large)  # all right
    assert score.compute()["miou"] == pytest.approx((50 / 54 + 50 / 54) / 2)


def test_ignored_pixels_count_for_nothing() -> None:
    pictures = _pictures()
    changed = [
        (torch.where(mask == 255, 5, prediction).to(torch.uint8), mask)
        for prediction, mask in pictures
    ]
    assert _score(changed).compute() == _score(pictures).compute()


def test_reading_in_between_changes_nothing() -> None:
    pictures, score = _pictures(), SegmentationScore(CLASSES)
    for prediction, mask in pictures:
        score.update(prediction.long(), mask)
        score.compute()
    assert score.compute() == _score(pictures).compute()


def test_a_large_set_is_counted_exactly() -> None:
    score = SegmentationScore(2)
    score._confusion += torch.tensor([[2**40 + 1, 0], [0, 1]])
    score.update(torch.tensor([[0]]), torch.tensor([[1]]))
    assert int(score.confusion().sum()) == 2**40 + 3
    assert score.compute()["iou"][1] == pytest.approx(0.5)


def test_when_algorithms_must_be_deterministic_a_picture_of_150_classes_still_fits() -> None:
    score = SegmentationScore(150)
    picture = torch.arange(600 * 600).view(600, 600) % 150
    torch.use_deterministic_algorithms(True)
    try:
        score.update(picture, picture)
        assert score.compute()["miou"] == 1
    finally:
        torch.use_deterministic_algorithms(False)


def test_nothing_to_evaluate_is_said() -> None:
    score = SegmentationScore(3)
    score.update(torch.zeros(2, 2), torch.full((2, 2), 255))
    with pytest.raises(UserError, match="no labelled pixel"):
        score.compute()


def test_what_cannot_be_is_noticed() -> None:
    score = SegmentationScore(3)
    for prediction, mask in (([[0]], [[3]]), ([[3]], [[0]]), ([[0, 1]], [[0]])):
        with pytest.raises(AssertionError):
            score.update(torch.tensor(prediction), torch.tensor(mask))


def _rank(file: str, rank: int, ranks: int, expected: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=ranks)
    start, stop = PICTURES * rank // ranks, PICTURES * (rank + 1) // ranks
    if ranks == 4:  # one rank has nothing at all
        start, stop = [(0, 0), (0, 1), (1, PICTURES - 5), (PICTURES - 5, PICTURES)][rank]
    score = _score(_pictures()[start:stop])
    score.compute()
    assert score.compute() == expected
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_change_nothing(tmp_path: Path, ranks: int) -> None:
    expected = _score(_pictures()).compute()
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_rank, args=(str(tmp_path / "meet"), rank, ranks, expected))
        for rank in range(ranks)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * ranks
