"""Fine-tuning for segmentation: the loss by hand, accumulation, rates by layer, learning."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.optim import AdamW

from beit.batch import ImageBatch
from beit.engine.protocol import ScalesRates, StepContext
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import decoder_config
from beit.nn.encoder import Encoder
from beit.nn.own_decoder import OwnDecoder
from beit.nn.segmenter import build_segmenter
from beit.tasks.segment import SegmentTask

CLASSES, SIZE = 3, (16, 24)


def build(kind: Any = "upernet", drop_path: float = 0.0, **changes: Any) -> SegmentTask:
    torch.manual_seed(0)
    config = EncoderConfig(SIZE, (4, 4), width=32, depth=4, heads=2, drop_path=drop_path)
    names = ("auxiliary_weight", "layer_decay", "ignore_index", "class_weights")
    own = {name: changes.pop(name) for name in names if name in changes}
    settings = {"channels": 16, "auxiliary_channels": 8, "auxiliary": True, "norm": "group"}
    if kind == "upernet":
        settings["pyramid"] = (2.0, 1.0, 1.0, 0.5)
    decoder = decoder_config(kind, config, CLASSES, **{**settings, **changes})
    return SegmentTask(build_segmenter(Encoder(config), decoder), **own)


def batch_of(images: int) -> ImageBatch:
    """Bright and dark rectangles on grey, a class each; a border that is ignored."""
    generator = torch.Generator().manual_seed(1)
    view = 0.1 * torch.randn(images, 3, *SIZE, generator=generator)
    target = torch.zeros(images, *SIZE, dtype=torch.uint8)
    for image in range(images):
        for label, colour in ((1, 2.0), (2, -2.0)):
            top, left = (int(torch.randint(n - 8, (), generator=generator)) for n in SIZE)
            place = (slice(top, top + 8), slice(left, left + 6 + image % 3))
            view[image, :, place[0], place[1]] = colour
            target[image, place[0], place[1]] = label
    target[:, 0] = 255
    target[0, :, :5] = 255  # the number of counted pixels differs from picture to picture
    index = torch.arange(images)
    return ImageBatch(index, torch.zeros_like(index), patch_view=view, target=target)


def rows(batch: ImageBatch, where: slice) -> ImageBatch:
    assert batch.patch_view is not None and batch.target is not None
    return ImageBatch(
        batch.index[where],
        batch.epoch[where],
        patch_view=batch.patch_view[where],
        target=batch.target[where],
    )


def context(where: range, step: int = 3) -> StepContext:
    return StepContext(seed=5, step=step, total_steps=10, rows=where)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_the_loss_is_both_heads_cross_entropy(weight: float) -> None:
    task, batch = build(auxiliary_weight=weight).eval(), batch_of(3)
    assert batch.patch_view is not None and batch.target is not None
    with torch.no_grad():
        for head in (task.model.decoder, task.model.auxiliary):
            assert head is not None and not isinstance(head, OwnDecoder)
            head.classifier.output.weight.mul_(100)
        output, raw = task(batch, context(range(3))), task.model(batch.patch_view)
    losses = []
    for logits in raw:
        scores = functional.interpolate(logits, size=SIZE, mode="bilinear", align_corners=False)
        negative = -scores.log_softmax(1)
        total, counted = 0.0, 0
        for image in range(3):
            for label in range(CLASSES):
                chosen = batch.target[image] == label
                total += float(negative[image, label][chosen].sum())
                counted += int(chosen.sum())
        losses.append(total / counted)
    assert losses[0] != pytest.approx(losses[1], rel=0.01)
    assert output.loss.item() == pytest.approx(losses[0] + weight * losses[1], rel=1e-5)
    assert output.weight.item() == counted < batch.target.numel()
    assert 0 < output.metrics["pixel_accuracy"].item() < 1


@pytest.mark.parametrize("kind", ["pup", "upernet"])
def test_accumulation_changes_nothing(kind: str) -> None:
    """Chance is a matter of the row, losses are joined by counted pixels, weighted or not."""
    weights = torch.tensor([0.2, 3.0, 2.0]) if kind == "upernet" else None
    task, batch = build(kind, drop_path=0.5, class_weights=weights).train(), batch_of(6)
    parameters = [p for p in task.parameters() if p.requires_grad]
    whole = task(batch, context(range(6)))
    expected = torch.autograd.grad(whole.loss, parameters)
    joined = [torch.zeros_like(p) for p in parameters]
    loss = 0.0
    for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
        output = task(rows(batch, part), context(range(part.start, part.stop)))
        share = (output.weight / whole.weight).item()
        loss += output.loss.item() * share
        for sums, found in zip(joined, torch.autograd.grad(output.loss, parameters), strict=True):
            sums.add_(found, alpha=share)
    assert loss == pytest.approx(whole.loss.item(), rel=1e-5)
    for sums, gradient in zip(joined, expected, strict=True):
        torch.testing.assert_close(sums, gradient, atol=1e-6, rtol=1e-3)
    assert whole.loss.item() != pytest.approx(task(batch, context(range(6), 4)).loss.item())
    task.eval()
    assert task(batch, context(range(6), 3)).loss == task(batch, context(range(6), 4)).loss


def test_what_drops_blocks_does_not_tell_which_channels_drop() -> None:
    task, given = build(drop_path=0.5, dropout=0.5).train(), []
    task.model.register_forward_pre_hook(lambda module, inputs: given.extend(inputs[1:]))
    task(batch_of(6), context(range(6)))
    paths, channels = given  # (6, 2 L), (6, channels of both heads)
    assert not set(paths.flatten().tolist()) & set(channels.flatten().tolist())


def test_rates_fall_towards_the_input() -> None:
    task = build(layer_decay=0.5)
    assert isinstance(task, ScalesRates)
    scales = task.rate_scales()
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert set(scales) == {name for name in trained if name.startswith("model.encoder.")}
    assert any(name.startswith("model.decoder.") for name in trained)
    assert any(name.startswith("model.auxiliary.") for name in trained)
    for prefix, scale in {
        "model.encoder.embeddings": 0.5**5,
        "model.encoder.blocks.0.": 0.5**4,
        "model.encoder.blocks.3.": 0.5**1,
    }.items():
        assert {value for name, value in scales.items() if name.startswith(prefix)} == {scale}
    assert set(build().rate_scales().values()) == {1.0}


def test_positions_are_not_decayed() -> None:
    task = build()
    names = {name for name, _ in task.named_parameters()}
    assert task.undecayed_parameters() < names and len(task.undecayed_parameters()) == 2


@pytest.mark.parametrize("kind", ["pup", "upernet"])
def test_every_trained_parameter_has_a_gradient(kind: str) -> None:
    layers = (0, 1) if kind == "pup" else (0, 1, 1, 2)
    task = build(kind, layers=layers).train()
    task(batch_of(2), context(range(2))).loss.backward()
    for name, parameter in task.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not task.model.encoder.blocks[3].mlp.expand.weight.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize("kind, norm", [("pup", "batch"), ("upernet", "group")])
def test_overfits_a_few_shapes(kind: str, norm: str) -> None:
    task, batch = build(kind, norm=norm, channels=32, dropout=0.0).train(), batch_of(4)
    optimiser = AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-2)
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 1e-2 * min(1.0, (step + 1) / 10)
        output = task(batch, context(range(4), step))
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
    task.eval()  # with running statistics, where there are any
    assert task(batch, context(range(4))).metrics["pixel_accuracy"].item() > 0.92


def test_batch_norm_alone_minds_how_a_batch_is_cut() -> None:
    """The words are what accumulation does: see the test of equal gradients with groups."""
    assert build().cutting() == (1, "")
    multiple, changes = build(norm="batch").cutting()
    assert multiple == 2 and "batch norm" in changes
