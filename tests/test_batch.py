import numpy as np
import pytest
import torch

from beit.batch import ColourDraws, ImageBatch, Masks
from beit.errors import UserError
from beit.masking import place_list


def _batch() -> ImageBatch:
    masks = Masks(
        grid=torch.zeros(2, 2, 2, dtype=torch.bool),
        index=torch.tensor([[3, 1], [2, 0]]),
        weight=torch.ones(2, 2),
    )
    return ImageBatch(
        index=torch.tensor([4, 5]),
        epoch=torch.tensor([0, 0]),
        patch_view=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        masks=masks,
        replaced=((4, "truncated"),),
    )


def test_a_batch_moves_whole() -> None:
    moved = _batch().to(torch.device("meta"))
    assert moved.index.is_meta and moved.patch_view is not None and moved.patch_view.is_meta
    assert moved.masks is not None and moved.masks.grid.is_meta and moved.masks.weight.is_meta
    assert moved.token_view is None and moved.replaced == ((4, "truncated"),)


def test_what_is_masked_is_gathered_in_the_order_of_the_list() -> None:
    masks = _batch().masks
    assert masks is not None
    values = torch.arange(8).view(2, 4)
    assert masks.gather(values).tolist() == [[3, 1], [6, 4]]
    wide = torch.arange(24).view(2, 4, 3)
    assert torch.equal(masks.gather(wide), torch.stack([wide[0, [3, 1]], wide[1, [2, 0]]]))


def test_gathering_carries_gradients_to_the_listed_places_only() -> None:
    masks = _batch().masks
    assert masks is not None
    values = torch.zeros(2, 4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(masks.gather(values).sum(), values)
    assert gradient.sum(-1).tolist() == [[0, 3, 0, 3], [3, 0, 3, 0]]


@pytest.mark.gpu
def test_a_pinned_batch_is_pinned_whole() -> None:
    one, order = torch.ones(2), torch.zeros(2, 3, dtype=torch.int64)
    draws = ColourDraws(one > 0, one, one, one, order)
    pinned = ImageBatch(torch.zeros(2), torch.zeros(2), colour=draws).pin_memory()
    assert pinned.colour is not None and pinned.colour.order.is_pinned()


@pytest.mark.parametrize("room", [None, 12, 20])
def test_masks_from_a_grid_list_what_it_shows(room: int | None) -> None:
    grid = np.random.default_rng(0).random((6, 4, 5)) < 0.4
    masks = Masks.from_grid(torch.from_numpy(grid), room)
    index, weight = place_list(grid, room or int(grid.sum((1, 2)).max()))
    assert masks.index.tolist() == index.tolist() and masks.weight.tolist() == weight.tolist()
    assert masks.grid.tolist() == grid.tolist() and masks.weight.dtype == torch.float32


def test_what_is_no_grid_of_masks_is_told() -> None:
    full = torch.ones(2, 3, 3, dtype=torch.bool)
    for grid, room in ((full.float(), None), (full[0], None), (full, 8), (full, 10)):
        with pytest.raises(UserError):
            Masks.from_grid(grid, room)
