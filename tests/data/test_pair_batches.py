"""Batches of pieces with masks obey the same law as batches of pictures."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.data.decoding.decode import BadPicture
from beit.data.loading.loader import LoaderSettings, pair_batches, whole_pairs
from beit.data.pairs.pair_texts import Palette
from beit.data.reading.bad_pictures import BadPictureLog
from beit.data.views.augment import prepare
from beit.data.views.joint_views import JointViewSettings
from beit.errors import UserError
from data.batch_rows import rows_of
from oracles.picture_zoo import scene

VIEWS = JointViewSettings(size=(16, 16), short_side=20)


class Painted:
    """Pictures of different sizes, each its own mask in red; some, or their masks, are bad."""

    name = "painted"
    fingerprint = "0"
    classes: tuple[str, ...] = tuple(f"class {k}" for k in range(250))
    palette: Palette | None = None
    pixels: tuple[int, ...] = ()
    bad: tuple[tuple[int, str], ...] = ()

    def __init__(
        self, size: int, bad: tuple[int, ...] = (), bad_masks: tuple[int, ...] = ()
    ) -> None:
        self._size, self._bad, self._bad_masks = size, bad, bad_masks

    def __len__(self) -> int:
        return self._size

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        return np.roll(scene(20 + index % 7, 24 + index % 5), index, axis=1)

    def read(self, index: int) -> Image.Image:
        if index in self._bad:
            raise BadPicture("truncated")
        return Image.fromarray(self._pixels(index))

    def mask(self, index: int) -> NDArray[np.uint8]:
        if index in self._bad_masks:
            raise BadPicture("mask: truncated")
        return np.ascontiguousarray(self._pixels(index)[..., 0])

    def identity(self, index: int) -> str:
        return f"picture-{index}"

    def label(self, index: int) -> int:
        return -1


SOURCE = Painted(37, bad=(3, 11), bad_masks=(8,))


def _samples(steps: int, seen: int = 0, **cut: Any) -> list[list[Tensor]]:
    """The samples of some global batches, put together from all ranks and micro-steps."""
    settings = replace(LoaderSettings(batch_size=16, seed=5), **cut)
    ranks, accumulation = settings.ranks, settings.accumulation
    lines: list[list[list[Tensor]]] = []
    for rank in range(ranks):
        batches = pair_batches(SOURCE, VIEWS, replace(settings, rank=rank), seen)
        micro = itertools.islice(batches, steps * accumulation)
        lines.append([row for batch in micro for row in rows_of(batch)])
    share = 16 // ranks
    return [
        row
        for step in range(steps)
        for line in lines
        for row in line[step * share : (step + 1) * share]
    ]


def _same(one: list[list[Tensor]], other: list[list[Tensor]]) -> bool:
    return len(one) == len(other) > 0 and all(
        torch.equal(a, b)
        for ours, theirs in zip(one, other, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def reference() -> list[list[Tensor]]:
    """Six global batches over 37 pictures: two epoch edges inside."""
    return _samples(6)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_law_1_ranks_and_accumulation(
    reference: list[list[Tensor]], ranks: int, accumulation: int
) -> None:
    assert _same(_samples(6, ranks=ranks, accumulation=accumulation), reference)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_law_1_workers(reference: list[list[Tensor]], workers: int) -> None:
    assert _same(_samples(2, workers=workers), reference[:32])


@pytest.mark.parametrize("step", [1, 3, 5])
def test_law_1_resuming(reference: list[list[Tensor]], step: int) -> None:
    assert _same(_samples(6 - step, seen=16 * step, ranks=2), reference[16 * step :])


def test_law_1_whatever_the_global_generators_hold(reference: list[list[Tensor]]) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    assert _same(_samples(1), reference[:16])


def test_law_1_workers_that_are_spawned(reference: list[list[Tensor]]) -> None:
    """They get the loader's parts pickled; here a pickle's copy must draw the same."""
    import pickle

    copy = pickle.loads(pickle.dumps(SOURCE))
    batch = next(pair_batches(copy, VIEWS, LoaderSettings(16, seed=5), 0))
    assert _same(list(rows_of(batch)), reference[:16])


def test_a_batch_has_the_shapes_and_types_promised() -> None:
    batch = next(pair_batches(Painted(9), VIEWS, LoaderSettings(4), 0))
    assert batch.patch_view is not None and batch.target is not None
    assert batch.patch_view.shape == (4, 3, 16, 16) and batch.target.shape == (4, 16, 16)
    assert batch.patch_view.dtype == batch.target.dtype == torch.uint8
    assert batch.colour is not None and batch.masks is None and batch.label is None
    plain = replace(VIEWS, random=False)
    assert next(pair_batches(Painted(9), plain, LoaderSettings(4), 0)).colour is None
    unflipped = replace(VIEWS, flip=False)
    colour = next(pair_batches(Painted(9), unflipped, LoaderSettings(9), 0)).colour
    assert colour is not None and not colour.flip.any()


def test_after_the_device_picture_and_mask_still_tell_the_same() -> None:
    """Half of the samples are flipped; red is the mask but for what bicubic smooths."""
    views = replace(VIEWS, size=(40, 40), short_side=40, jitter=0.0, most_of_one_class=1.0)
    raw = next(pair_batches(Painted(32), views, LoaderSettings(32), 0))
    ready = prepare(raw)
    assert raw.colour is not None and 8 < raw.colour.flip.sum() < 24
    assert ready.patch_view is not None and ready.target is not None
    red = (ready.patch_view[:, 0] * 0.229 + 0.485) * 255
    difference = (red - ready.target.float()).abs()[ready.target != 255]
    # The wrapped column of the rolled scene is an edge; all else is smooth.
    assert difference.quantile(0.75) <= 5


def test_bad_pictures_and_bad_masks_are_named_and_replaced(tmp_path: Path) -> None:
    log = BadPictureLog(tmp_path, SOURCE, most=0.2)
    found: set[tuple[int, str]] = set()
    batches = pair_batches(SOURCE, VIEWS, LoaderSettings(37), 0, log=log)
    for batch in itertools.islice(batches, 2):
        assert sorted(batch.index.tolist()) == list(range(37))
        found |= set(batch.replaced)
    assert found == {(3, "truncated"), (11, "truncated"), (8, "mask: truncated")}
    assert log.count == 3
    strict = BadPictureLog(tmp_path / "..", SOURCE, most=0.01, name=f"{tmp_path.name}.jsonl")
    with pytest.raises(UserError, match=r"of 37 pictures .* cannot be read"):
        list(pair_batches(SOURCE, VIEWS, LoaderSettings(37), 0, log=strict))


def test_when_nothing_can_be_read_the_run_stops_with_names() -> None:
    nothing = Painted(3, bad_masks=(0, 1, 2))
    with pytest.raises(UserError, match=r"were tried.*picture-\d \(mask: truncated\)"):
        next(pair_batches(nothing, VIEWS, LoaderSettings(2), 0))
    with pytest.raises(UserError, match="no picture"):
        next(pair_batches(Painted(0), VIEWS, LoaderSettings(2), 0))


class Changed(Painted):
    """One mask was repainted in another size after the survey."""

    def mask(self, index: int) -> NDArray[np.uint8]:
        return super().mask(index)[: 4 if index == 2 else None]


def test_a_mask_that_no_longer_fits_is_a_bad_picture() -> None:
    batch = next(pair_batches(Changed(5), VIEWS, LoaderSettings(5), 0))
    assert set(batch.replaced) == {(2, "26 x 22 pixels, its mask 26 x 4")}


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_pairs_are_each_picture_once_as_it_is(workers: int) -> None:
    source = Painted(13)
    for index, pair in enumerate(whole_pairs(source, workers=workers)):
        assert pair.index == index and pair.image.dtype == pair.mask.dtype == torch.uint8
        assert np.array_equal(pair.image.permute(1, 2, 0).numpy(), np.asarray(source.read(index)))
        assert np.array_equal(pair.mask.numpy(), source.mask(index))
    assert index == 12


@pytest.mark.parametrize("ranks", [1, 2, 4, 20])
def test_whole_pairs_are_cut_into_ranks_without_repeats(ranks: int) -> None:
    found = [
        pair.index for rank in range(ranks) for pair in whole_pairs(Painted(13), (rank, ranks))
    ]
    assert found == list(range(13))


def test_whole_pairs_leave_bad_ones_out_only_when_somebody_takes_note(tmp_path: Path) -> None:
    log = BadPictureLog(tmp_path, SOURCE, most=0.2)
    found = [pair.index for pair in whole_pairs(SOURCE, log=log)]
    assert found == [index for index in range(37) if index not in (3, 8, 11)]
    assert log.count == 3
    with pytest.raises(UserError, match=r"picture-3 of painted cannot be read \(truncated\)"):
        list(whole_pairs(SOURCE))


def test_camvid_is_the_same_for_any_number_of_workers(camvid: Path) -> None:
    from beit.data.pairs.pairs import open_pairs

    source = open_pairs(str(camvid), "val")
    views = JointViewSettings((96, 128), short_side=120)
    runs = [
        next(pair_batches(source, views, LoaderSettings(4, workers=workers), 0))
        for workers in (0, 1)
    ]
    assert _same(list(rows_of(runs[0])), list(rows_of(runs[1])))
    assert runs[0].target is not None
    assert set(runs[0].target.flatten().tolist()) <= {*range(11), 255}
