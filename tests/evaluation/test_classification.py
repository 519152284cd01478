"""The figures are torchmetrics', whatever the cut into batches or ranks."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from beit.errors import UserError
from beit.evaluation import classification
from beit.evaluation.classification import ClassificationReport, ClassificationScore
from cuda_sync import never_asked

CLASSES, PICTURES = 7, 203


def confusion_of(report: ClassificationReport) -> Tensor:
    assert report.confusion is not None
    return report.confusion


def _answers() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES - 1, (PICTURES,), generator=generator)  # the last class is empty
    logits = torch.randn(PICTURES, CLASSES, generator=generator)
    logits[torch.arange(PICTURES), labels] += 1
    return logits * 1.5, labels


def _score(logits: Tensor, labels: Tensor, batch: int) -> ClassificationScore:
    score = ClassificationScore(CLASSES)
    for start in range(0, len(labels), batch):
        score.update(logits[start : start + batch], labels[start : start + batch])
    return score


def test_the_figures_are_those_of_torchmetrics() -> None:
    logits, labels = _answers()
    report = _score(logits, labels, 32).compute()
    for top_k, ours in ((1, report.top1), (5, report.top5)):
        theirs = multiclass_accuracy(logits, labels, CLASSES, average="micro", top_k=top_k)
        assert ours == pytest.approx(float(theirs), abs=1e-6)
    assert torch.equal(confusion_of(report), multiclass_confusion_matrix(logits, labels, CLASSES))
    calibration = multiclass_calibration_error(logits, labels, CLASSES, n_bins=15)
    assert report.calibration_error == pytest.approx(float(calibration), abs=1e-6)
    each = multiclass_accuracy(logits, labels, CLASSES, average="none")
    assert torch.allclose(report.per_class[:-1].float(), each[:-1], atol=1e-6)
    loss = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert report.loss == pytest.approx(float(loss), abs=1e-6)
    assert report.pictures == PICTURES == int(confusion_of(report).sum())


def test_rows_of_the_confusion_are_the_truth() -> None:
    score = ClassificationScore(3)
    score.update(torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0]]), torch.tensor([0, 1]))
    report = score.compute()
    assert confusion_of(report).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert report.per_class[:2].tolist() == [0, 1] and report.per_class[2].isnan()
    assert report.mean_class_accuracy == 0.5 and report.top5 == 1


def test_a_sure_and_right_answer_is_calibrated() -> None:
    sure = torch.eye(4) * 1000
    score = ClassificationScore(4)
    score.update(sure, torch.arange(4))
    assert score.compute().calibration_error == 0
    score.update(sure, (torch.arange(4) + 1) % 4)
    assert score.compute().calibration_error == 0.5


def test_too_sure_and_too_modest_do_not_cancel() -> None:
    """Of 15 bins, 0.61 and 0.69 fall into two; the mean of their gaps is the error."""
    confidence = torch.tensor([0.61, 0.61, 0.69, 0.69])
    score = ClassificationScore(2)
    score.update(torch.stack((confidence, 1 - confidence), 1).log(), torch.tensor([0, 0, 1, 1]))
    assert score.compute().calibration_error == pytest.approx((0.39 + 0.69) / 2, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 50, PICTURES])
def test_batches_and_reading_in_between_change_nothing(batch: int) -> None:
    logits, labels = _answers()
    whole, score = _score(logits, labels, PICTURES).compute(), _score(logits, labels, batch)
    score.compute()
    _assert_same(score.compute(), whole)


def test_metrics_are_flat_floats() -> None:
    metrics = _score(*_answers(), 64).compute().metrics()
    assert {"loss", "top1", "top5", "calibration_error"} <= set(metrics)
    assert all(type(value) is float for value in metrics.values())


def test_a_model_that_diverged_scores_no_better_than_chance() -> None:
    score = ClassificationScore(10)
    score.update(torch.full((10, 10), torch.nan), torch.arange(10))
    report = score.compute()
    assert report.top1 == 0.1 and report.top5 == 0.5 and report.loss != report.loss


def test_half_precision_is_counted_in_full() -> None:
    logits, labels = _answers()
    _assert_same(
        _score(logits.bfloat16(), labels, 9).compute(),
        _score(logits.bfloat16().float(), labels, 64).compute(),
    )


def test_nothing_to_evaluate_is_said() -> None:
    with pytest.raises(UserError, match="no picture"):
        ClassificationScore(3).compute()


def _rank(file: str, rank: int, ranks: int, expected: ClassificationReport) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=ranks)
    logits, labels = _answers()
    start, stop = PICTURES * rank // ranks, PICTURES * (rank + 1) // ranks
    if ranks == 4:  # one rank has nothing at all, another everything that is left
        start, stop = [(0, 0), (0, 1), (1, PICTURES - 5), (PICTURES - 5, PICTURES)][rank]
    score = ClassificationScore(CLASSES)
    if stop > start:
        score = _score(logits[start:stop], labels[start:stop], 16)
    score.compute()
    _assert_same(score.compute(), expected)
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_change_nothing(tmp_path: Path, ranks: int) -> None:
    expected = _score(*_answers(), PICTURES).compute()
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


@pytest.mark.gpu
def test_the_device_is_asked_at_the_end_alone() -> None:
    logits, labels = (tensor.cuda() for tensor in _answers())
    with never_asked():
        score = _score(logits, labels, 32)
    found, expected = score.compute(), _score(*_answers(), 32).compute()
    assert found.metrics() == pytest.approx(expected.metrics(), abs=1e-6)
    assert torch.equal(confusion_of(found), confusion_of(expected))


def _assert_same(one: ClassificationReport, other: ClassificationReport) -> None:
    assert one.metrics() == pytest.approx(other.metrics(), abs=1e-9)
    assert torch.equal(confusion_of(one), confusion_of(other))
    assert torch.equal(one.per_class.nan_to_num(-1), other.per_class.nan_to_num(-1))


def test_very_many_classes_keep_no_confusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet-22k's would take 4 GB; all other figures are the same without it."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(90, 7, generator=generator)
    labels = torch.randint(7, (90,), generator=generator)
    reports = []
    for most in (7, 6):
        monkeypatch.setattr(classification, "MOST_CONFUSED", most)
        score = ClassificationScore(7)
        score.update(logits, labels)
        reports.append(score.compute())
    whole, spare = reports
    assert whole.confusion is not None and spare.confusion is None
    assert whole.metrics() == spare.metrics()
    assert torch.equal(whole.per_class, spare.per_class)
    assert torch.equal(whole.per_class_pictures, whole.confusion.sum(1))
