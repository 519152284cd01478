"""Views in the order of the source, and views that are used again: what a token bank rests on."""

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from beit.batch import ImageBatch
from beit.data.decoding.decode import BadPicture
from beit.data.loading.loader import LoaderSettings, ordered_batches, training_batches
from beit.data.views.augment import prepare
from beit.data.views.draws import MaskPlan
from beit.data.views.views import ViewSettings
from oracles.picture_zoo import scene

VIEWS = ViewSettings((16, 16), (8, 8))
TOKENS_ALONE = ViewSettings(None, (8, 8))
MASKS = MaskPlan((4, 4), minimum_block=2)
SIZE, BAD = 10, (3, 7)


class Few:
    """Ten pictures, two of them bad."""

    name, fingerprint = "few", "0"
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return SIZE

    def read(self, index: int) -> Image.Image:
        if index in BAD:
            raise BadPicture("truncated")
        return Image.fromarray(scene(20 + index, 24 + index % 5))

    def identity(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return -1


class Counted:
    """Codes that say which view of which picture they are of."""

    def read(self, views: Sequence[int], indices: Sequence[int]) -> Tensor:
        rows = [100 * view + index for view, index in zip(views, indices, strict=True)]
        return torch.tensor(rows)[:, None, None].expand(-1, 4, 4)


def trained(epochs: int, views: int | None = None, workers: int = 0) -> list[ImageBatch]:
    settings = LoaderSettings(5, seed=3, views=views, workers=workers)
    batches = training_batches(Few(), VIEWS, MASKS, settings, 0, codes=Counted())
    return [prepare(next(batches)) for _ in range(epochs * SIZE // 5)]


def token_views(batches: list[ImageBatch]) -> dict[tuple[int, int], Tensor]:
    found = {}
    for batch in batches:
        assert batch.token_view is not None
        for epoch, index, view in zip(batch.epoch, batch.index, batch.token_view, strict=True):
            found[int(epoch), int(index)] = view
    return found


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_ordered_views_are_those_of_training(batch: int, workers: int) -> None:
    where = [range(p, min(p + batch, 2 * SIZE)) for p in range(0, 2 * SIZE, batch)]
    settings = LoaderSettings(batch, seed=3, workers=workers)
    ordered = ordered_batches(Few(), TOKENS_ALONE, settings, where)
    ours, theirs = token_views([prepare(b) for b in ordered]), token_views(trained(2))
    assert ours.keys() == theirs.keys() == {(e, i) for e in (0, 1) for i in range(SIZE)}
    assert all(torch.equal(ours[place], theirs[place]) for place in ours)  # also in bad places


def test_views_are_used_again_in_turn_under_new_masks() -> None:
    batches = trained(5, views=2)
    views = token_views(batches)
    plain = token_views(trained(2))
    for (epoch, index), view in views.items():
        assert torch.equal(view, plain[epoch % 2, index])
    masks: dict[int, list[Tensor]] = {}
    for batch in batches:
        assert batch.masks is not None
        for index, grid in zip(batch.index, batch.masks.grid, strict=True):
            masks.setdefault(int(index), []).append(grid)
    distinct = [len({tuple(m.flatten().tolist()) for m in of}) for of in masks.values()]
    assert min(distinct) >= 3  # five draws of few possible masks; two if they came back with views


def test_masks_are_those_of_the_true_epoch() -> None:
    with_views, without = trained(3, views=1), trained(3)
    for ours, theirs in zip(with_views, without, strict=True):
        assert ours.masks is not None and theirs.masks is not None
        assert torch.equal(ours.masks.grid, theirs.masks.grid)
        assert torch.equal(ours.epoch, theirs.epoch) and torch.equal(ours.index, theirs.index)


def test_codes_travel_with_their_views() -> None:
    for views in (None, 2):
        for batch in trained(3, views):
            assert batch.codes is not None and batch.codes.shape == (5, 4, 4)
            of = batch.epoch if views is None else batch.epoch % views
            assert torch.equal(batch.codes[:, 0, 0], 100 * of + batch.index)
