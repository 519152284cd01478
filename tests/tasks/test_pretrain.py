"""Masked image modelling: the loss by hand, nothing but masked places, learning in seconds."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from beit.batch import ImageBatch, Masks
from beit.engine.protocol import StepContext
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.nn.heads import MaskedPixelHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.tasks.pretrain import Pixels, PretrainTask, VisualTokens

CODES = 6


class QuadrantTokenizer:
    """A code for each patch by how bright and how red its part of the view is."""

    vocabulary = CODES
    image_size = (16, 24)
    grid = (4, 6)

    def codes(self, images: Tensor) -> Tensor:
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))  # (B, 3, h, w)
        red = (patches[:, 0] > patches[:, 2]).long()
        return (patches.mean(1) * 3).long().clamp(0, 2) * 2 + red


def build(drop_path: float = 0.0, *, pixels: bool = False) -> PretrainTask:
    torch.manual_seed(0)
    config = EncoderConfig((16, 24), (4, 4), width=32, depth=2, heads=2, drop_path=drop_path)
    if pixels:
        return PretrainTask(
            MaskedImageModel(Encoder(config), MaskedPixelHead(32, 48)), Pixels((4, 4))
        )
    model = MaskedImageModel(Encoder(config), MaskedTokenHead(32, CODES))
    return PretrainTask(model, VisualTokens(QuadrantTokenizer()))


def batch_of(images: int, listed: int = 10) -> ImageBatch:
    """Pictures with 4 to `listed` masked places each; the rest of the list is padding."""
    torch.manual_seed(1)
    index = torch.zeros(images, listed, dtype=torch.int64)
    weight, grid = torch.zeros(images, listed), torch.zeros(images, 24, dtype=torch.bool)
    for row in range(images):
        count = 4 + row % (listed - 3)
        places = torch.randperm(24)[:count]
        index[row, :count], weight[row, :count] = places, 1.0
        grid[row, places] = True
    numbers = torch.arange(images)
    return ImageBatch(
        numbers,
        torch.zeros_like(numbers),
        patch_view=torch.randn(images, 3, 16, 24),
        token_view=torch.rand(images, 3, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3),
        masks=Masks(grid.view(images, 4, 6), index, weight),
    )


def rows(batch: ImageBatch, where: slice) -> ImageBatch:
    assert batch.patch_view is not None and batch.token_view is not None
    assert batch.masks is not None
    masks = batch.masks
    return ImageBatch(
        batch.index[where],
        batch.epoch[where],
        patch_view=batch.patch_view[where],
        token_view=batch.token_view[where],
        masks=Masks(masks.grid[where], masks.index[where], masks.weight[where]),
    )


def context(where: range, step: int = 3) -> StepContext:
    return StepContext(seed=5, step=step, total_steps=10, rows=where)


def test_the_loss_is_the_mean_over_masked_places() -> None:
    task, batch = build().eval(), batch_of(5)
    output = task(batch, context(range(5)))
    assert batch.masks is not None and batch.token_view is not None
    codes = QuadrantTokenizer().codes(batch.token_view).flatten(1)
    logits = task.model(batch.patch_view, batch.masks).detach()
    losses, right = [], []
    for row in range(5):
        for place in range(10):
            if batch.masks.weight[row, place]:
                code = int(codes[row, batch.masks.index[row, place]])
                losses.append(-float(logits[row, place].log_softmax(-1)[code]))
                right.append(int(logits[row, place].argmax()) == code)
    assert len(losses) == 4 + 5 + 6 + 7 + 8 == output.weight.item()
    assert output.loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert output.metrics["accuracy"].item() == pytest.approx(sum(right) / len(right))
    assert not any(value.requires_grad for value in output.metrics.values())


def test_the_perplexity_is_that_of_the_targets() -> None:
    task, batch = build(), batch_of(6)
    output = task(batch, context(range(6)))
    assert batch.masks is not None and batch.token_view is not None
    masked = QuadrantTokenizer().codes(batch.token_view)[batch.masks.grid]
    shares = torch.bincount(masked, minlength=CODES) / len(masked)
    entropy = -sum(float(share) * math.log(float(share)) for share in shares if share > 0)
    assert output.metrics["code_perplexity"].item() == pytest.approx(math.exp(entropy), rel=1e-4)


def test_pixels_are_scored_at_masked_places() -> None:
    task, batch = build(pixels=True).eval(), batch_of(4)
    output = task(batch, context(range(4)))
    assert batch.masks is not None and batch.patch_view is not None
    prediction = task.model(batch.patch_view, batch.masks)
    errors = []
    for row in range(4):
        for place in range(10):
            if batch.masks.weight[row, place]:
                top, left = divmod(int(batch.masks.index[row, place]), 6)
                patch = batch.patch_view[row, :, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4]
                difference = prediction[row, place] - patch.flatten()  # colour, row, column
                errors.append(float(difference.detach().square().mean()))
    assert output.weight.item() == len(errors)
    assert output.loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_stochastic_depth_is_a_matter_of_the_row() -> None:
    """The same samples in one batch or in two see the same paths."""
    task, batch = build(drop_path=0.5), batch_of(6)
    whole = task(batch, context(range(6)))
    parts = [
        task(rows(batch, slice(0, 2)), context(range(0, 2))),
        task(rows(batch, slice(2, 6)), context(range(2, 6))),
    ]
    joined = sum(part.loss * part.weight for part in parts) / sum(part.weight for part in parts)
    assert joined.item() == pytest.approx(whole.loss.item(), rel=1e-5)
    assert whole.loss.item() != pytest.approx(task(batch, context(range(6), 4)).loss.item())
    task.eval()
    assert task(batch, context(range(6), 3)).loss == task(batch, context(range(6), 4)).loss


def test_the_tokenizer_is_no_part_of_what_is_trained() -> None:
    class Parametrised(QuadrantTokenizer, torch.nn.Module):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.weight = torch.nn.Parameter(torch.zeros(3))

    task = PretrainTask(build().model, VisualTokens(Parametrised()))
    names = {name for name, _ in task.named_parameters()}
    assert all(name.startswith("model.") for name in {*names, *task.state_dict()})
    undecayed = task.undecayed_parameters()
    assert undecayed < names and len(undecayed) == 2
    assert not any("mask" in name for name in undecayed)


@pytest.mark.parametrize("pixels", [False, True])
def test_overfits_one_batch(pixels: bool) -> None:
    task, batch = build(pixels=pixels), batch_of(6)
    optimiser = AdamW(task.parameters(), lr=3e-3)
    first = last = math.inf
    for step in range(100):
        output = task(batch, context(range(6), step))
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        first, last = min(first, output.loss.item()) if step == 0 else first, output.loss.item()
    assert last < 0.05 * first
    if not pixels:
        assert output.metrics["accuracy"].item() == 1.0


def test_a_batch_that_lacks_something_is_told_what() -> None:
    batch = batch_of(2)
    context = StepContext(seed=5, step=0, total_steps=10, rows=range(2))
    for pixels, lacking, expected in (
        (False, replace(batch, token_view=None), "no token_view .* and no codes"),
        (False, replace(batch, masks=None), "no masks"),
        (True, replace(batch, patch_view=None), "no patch_view"),
    ):
        with pytest.raises(ValueError, match=f"the batch has {expected}"):
            build(pixels=pixels)(lacking, context)
