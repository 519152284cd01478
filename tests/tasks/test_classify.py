"""Fine-tuning for classification: the loss by hand, rates by layer, learning in seconds."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.optim import AdamW

from beit.batch import ImageBatch
from beit.engine.protocol import ScalesRates, StepContext
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead
from beit.tasks.classify import ClassifyTask
from beit.tasks.mixing import MixSettings

CLASSES = 5


def build(drop_path: float = 0.0, **changes: Any) -> ClassifyTask:
    torch.manual_seed(0)
    config = EncoderConfig((8, 12), (4, 4), width=32, depth=3, heads=2, drop_path=drop_path)
    return ClassifyTask(Classifier(Encoder(config), ClassifierHead(32, CLASSES)), **changes)


def batch_of(images: int) -> ImageBatch:
    torch.manual_seed(1)
    index = torch.arange(images)
    return ImageBatch(
        index,
        torch.zeros_like(index),
        patch_view=torch.randn(images, 3, 8, 12),
        label=index % CLASSES,
    )


def rows(batch: ImageBatch, where: slice) -> ImageBatch:
    assert batch.patch_view is not None and batch.label is not None
    return ImageBatch(
        batch.index[where],
        batch.epoch[where],
        patch_view=batch.patch_view[where],
        label=batch.label[where],
    )


def context(where: range, step: int = 3) -> StepContext:
    return StepContext(seed=5, step=step, total_steps=10, rows=where)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_smoothed_labels(smoothing: float) -> None:
    task, batch = build(mixing=MixSettings(label_smoothing=smoothing)), batch_of(7)
    assert batch.patch_view is not None and batch.label is not None
    with torch.no_grad():
        task.model.head.output.weight.mul_(3000)  # it starts almost at zero
        output = task(batch, context(range(7)))
        logits = task.model(batch.patch_view)
    expected = 0.0
    for row, label in enumerate(batch.label.tolist()):
        negative = (-logits[row].log_softmax(-1)).tolist()
        expected += (1 - smoothing) * negative[label] + smoothing * sum(negative) / CLASSES
    assert output.loss.item() == pytest.approx(expected / 7, rel=1e-5)
    assert output.loss.item() != pytest.approx(math.log(CLASSES), rel=1e-2)
    assert output.weight.item() == 7
    right = (logits.argmax(-1) == batch.label).float().mean()
    assert output.metrics["accuracy"].item() == pytest.approx(right.item())


def test_in_evaluation_nothing_is_mixed_smoothed_or_dropped() -> None:
    mixing = MixSettings(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    task, batch = build(drop_path=0.5, mixing=mixing), batch_of(6)
    assert batch.patch_view is not None and batch.label is not None
    task.model.head.output.weight.data.mul_(3000)  # it starts almost at zero
    assert task(batch, context(range(6))).loss != task(batch, context(range(6), 4)).loss
    task.eval()
    expected = functional.cross_entropy(task.model(batch.patch_view), batch.label)
    assert torch.equal(task(batch, context(range(6))).loss, expected)


def test_stochastic_depth_is_a_matter_of_the_row() -> None:
    task, batch = build(drop_path=0.5), batch_of(6)
    with torch.no_grad():
        task.model.head.output.weight.mul_(3000)
    whole = task(batch, context(range(6))).loss.item()
    parts = [
        task(rows(batch, slice(0, 2)), context(range(0, 2))).loss.item() * 2,
        task(rows(batch, slice(2, 6)), context(range(2, 6))).loss.item() * 4,
    ]
    assert sum(parts) / 6 == pytest.approx(whole, rel=1e-5)
    assert whole != pytest.approx(task(batch, context(range(6), 4)).loss.item())
    task.eval()
    assert task(batch, context(range(6), 3)).loss == task(batch, context(range(6), 4)).loss


def test_rates_fall_towards_the_input() -> None:
    task = build(layer_decay=0.5)
    assert isinstance(task, ScalesRates)
    scales = task.rate_scales()
    names = {name for name, _ in task.named_parameters()}
    assert set(scales) == {name for name in names if name.startswith("model.encoder.")}
    by_depth = {
        "model.encoder.embeddings": 0.5**4,
        "model.encoder.blocks.0.": 0.5**3,
        "model.encoder.blocks.1.": 0.5**2,
        "model.encoder.blocks.2.": 0.5**1,
    }
    for prefix, scale in by_depth.items():
        found = {value for name, value in scales.items() if name.startswith(prefix)}
        assert found == {scale}, prefix
    assert set(scales.values()) == set(by_depth.values())
    assert set(build().rate_scales().values()) == {1.0}


def test_positions_are_not_decayed() -> None:
    task = build()
    names = {name for name, _ in task.named_parameters()}
    assert task.undecayed_parameters() < names and len(task.undecayed_parameters()) == 2


def test_overfits_one_batch() -> None:
    task, batch = build(mixing=MixSettings()), batch_of(10)
    optimiser = AdamW(task.parameters(), lr=3e-3)
    for step in range(60):
        output = task(batch, context(range(10), step))
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
    assert output.loss.item() < 0.05 and output.metrics["accuracy"].item() == 1.0


def test_only_mixed_pictures_come_in_pairs() -> None:
    assert build().cutting() == (1, "")
    assert build(mixing=MixSettings(mixup=0.8)).cutting() == (2, "")
    assert build(mixing=MixSettings(cutmix=1.0)).cutting() == (2, "")
