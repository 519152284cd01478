"""Masked pixels and their baselines equal obvious slow versions."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from beit.batch import ImageBatch, Masks
from beit.errors import UserError
from beit.evaluation.masked_pixels import MaskedPixels, evaluate_masked_pixels

HEIGHT, WIDTH, COLOURS, CAPACITY = 3, 4, 3, 9
VALUES = COLOURS * 4
Part = tuple[ImageBatch, Tensor, Tensor]  # with its true and its predicted pixels


def _masks(generator: torch.Generator, count: int) -> Masks:
    grid = torch.rand(count, HEIGHT, WIDTH, generator=generator) < 0.5
    grid.flatten(1)[:, CAPACITY:] = False
    grid[0] = torch.zeros(HEIGHT, WIDTH).bool()  # nothing to predict in the first
    index, weight = torch.zeros(count, CAPACITY).long(), torch.zeros(count, CAPACITY)
    for row in range(count):
        places = grid[row].flatten().nonzero().flatten()
        index[row, : len(places)], weight[row, : len(places)] = places, 1
    return Masks(grid, index, weight)


def _part(generator: torch.Generator, count: int) -> Part:
    """A batch whose pixels and predictions travel in the views."""
    true = 0.5 + torch.randn(count, HEIGHT * WIDTH, VALUES, generator=generator)
    predicted = torch.randn(count, CAPACITY, VALUES, generator=generator)
    index = torch.arange(count)
    masks = _masks(generator, count)
    return ImageBatch(index, index * 0, predicted, true, masks=masks), true, predicted


def _evaluate(parts: list[Part]) -> MaskedPixels:
    def predict(batch: ImageBatch) -> Tensor:
        assert batch.patch_view is not None
        return batch.patch_view

    def pixels(batch: ImageBatch) -> Tensor:
        assert batch.token_view is not None
        return batch.token_view

    return evaluate_masked_pixels([part[0] for part in parts], predict, pixels, VALUES, COLOURS)


def _nearest(grid: Tensor, place: int) -> int:
    row, column = divmod(place, WIDTH)
    visible = [n for n in range(HEIGHT * WIDTH) if not grid.flatten()[n]]
    return min(visible, key=lambda n: (math.dist(divmod(n, WIDTH), (row, column)), n))


def slow_evaluation(parts: list[Part]) -> dict[str, float]:
    model, copied, colour, masked = [], [], [], []
    for batch, true, predicted in parts:
        assert batch.masks is not None
        for row, grid in enumerate(batch.masks.grid):
            pixels = true[row].double().numpy()  # (N, P)
            visible = pixels[~grid.flatten().numpy()].reshape(-1, COLOURS, VALUES // COLOURS)
            mean = visible.mean((0, 2)).repeat(VALUES // COLOURS)
            places = [place for place in range(HEIGHT * WIDTH) if grid.flatten()[place]]
            for position, place in enumerate(places):
                masked.append(pixels[place])
                model.append(pixels[place] - predicted[row, position].double().numpy())
                copied.append(pixels[place] - pixels[_nearest(grid, place)])
                colour.append(pixels[place] - mean)
    spread = np.array(masked) - np.mean(masked, axis=0)
    errors = {
        "loss": model,
        "zero_loss": masked,
        "constant_loss": spread,
        "mean_colour_loss": colour,
        "neighbour_copy_loss": copied,
    }
    found = {name: float(np.square(error).mean()) for name, error in errors.items()}
    return {**found, "places": len(masked), "explained": 1 - found["loss"] / found["constant_loss"]}


def test_equals_the_slow_version() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [_part(generator, count) for count in (4, 3, 2)]
    found = _evaluate(parts)
    assert found.metrics() == pytest.approx({**slow_evaluation(parts), "pictures": 9}, rel=1e-6)


def test_the_split_into_batches_changes_nothing() -> None:
    whole, true, predicted = _part(torch.Generator().manual_seed(2), 6)
    assert whole.masks is not None
    apart = []
    for part in (slice(0, 1), slice(1, 6)):
        masks = Masks(whole.masks.grid[part], whole.masks.index[part], whole.masks.weight[part])
        views = predicted[part], true[part]
        batch = ImageBatch(whole.index[part], whole.epoch[part], *views, masks=masks)
        apart.append((batch, true[part], predicted[part]))
    together = _evaluate([(whole, true, predicted)]).metrics()
    assert _evaluate(apart).metrics() == pytest.approx(together, rel=1e-12)


def test_nothing_visible_is_guessed_to_be_the_mean_colour() -> None:
    batch, true, predicted = _part(torch.Generator().manual_seed(3), 1)
    places, weight = torch.arange(CAPACITY)[None], torch.ones(1, CAPACITY)
    masks = Masks(torch.ones(1, HEIGHT, WIDTH).bool(), places, weight)
    batch = ImageBatch(batch.index, batch.epoch, predicted, true, masks=masks)
    found = _evaluate([(batch, true, predicted)])
    assert found.neighbour_copy_loss == found.mean_colour_loss == found.zero_loss > 0


def test_no_picture_and_no_mask_are_named() -> None:
    with pytest.raises(UserError, match="no picture"):
        _evaluate([])
    batch, true, predicted = _part(torch.Generator().manual_seed(0), 1)  # its first has no mask
    with pytest.raises(UserError, match="No patch is masked"):
        _evaluate([(batch, true, predicted)])
