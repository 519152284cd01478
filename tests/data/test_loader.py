import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from beit.data.decoding.decode import BadPicture
from beit.data.loading.loader import LoaderSettings, evaluation_batches, training_batches
from beit.data.reading.bad_pictures import FILE_NAME, BadPictureLog
from beit.data.reading.watch import LoaderError
from beit.data.views.draws import Key, MaskPlan
from beit.data.views.views import ViewSettings, make_views
from beit.errors import UserError
from data.batch_rows import rows_of, tensors_of
from oracles.picture_zoo import scene

VIEWS = ViewSettings((16, 16), (8, 8))
MASKS = MaskPlan((4, 4), minimum_block=2)


class Painted:
    """Pictures of different sizes and colours; some are bad, one may kill or delay its reader."""

    name = "painted"
    fingerprint = "0"
    classes: tuple[str, ...] = ("even", "odd")

    def __init__(
        self, size: int, bad: tuple[int, ...] = (), lethal: int = -1, slow: int = -1
    ) -> None:
        self._size, self._bad, self._lethal, self._slow = size, bad, lethal, slow

    def __len__(self) -> int:
        return self._size

    def read(self, index: int) -> Image.Image:
        if index == self._lethal:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self._slow:
            time.sleep(60)
        if index in self._bad:
            raise BadPicture("truncated")
        pixels = scene(20 + index % 7, 24 + index % 5)
        return Image.fromarray(np.roll(pixels, index, axis=1))

    def identity(self, index: int) -> str:
        return f"picture-{index}"

    def label(self, index: int) -> int:
        return index % 2


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(
        torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def _samples(
    source: Painted, steps: int, seen: int = 0, views: ViewSettings = VIEWS, **cut: Any
) -> list[list[Tensor]]:
    """The samples of some global batches, put together from all ranks and micro-steps."""
    settings = replace(LoaderSettings(batch_size=16, seed=5), **cut)
    ranks, accumulation = settings.ranks, settings.accumulation
    lines: list[list[list[Tensor]]] = []
    for rank in range(ranks):
        batches = training_batches(source, views, MASKS, replace(settings, rank=rank), seen)
        micro = itertools.islice(batches, steps * accumulation)
        lines.append([row for batch in micro for row in rows_of(batch)])
    share = 16 // ranks
    return [
        row
        for step in range(steps)
        for line in lines
        for row in line[step * share : (step + 1) * share]
    ]


@pytest.fixture(scope="module")
def reference() -> list[list[Tensor]]:
    """Six global batches over 37 pictures: two epoch edges inside."""
    return _samples(Painted(37, bad=(3, 11)), steps=6)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_law_1_ranks_and_accumulation(
    reference: list[list[Tensor]], ranks: int, accumulation: int
) -> None:
    mine = _samples(Painted(37, bad=(3, 11)), 6, ranks=ranks, accumulation=accumulation)
    assert all(_same(*pair) for pair in zip(mine, reference, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_law_1_workers(reference: list[list[Tensor]], workers: int, ranks: int) -> None:
    mine = _samples(Painted(37, bad=(3, 11)), 2, ranks=ranks, workers=workers)
    assert all(_same(*pair) for pair in zip(mine, reference[:32], strict=True))


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_law_1_resuming(reference: list[list[Tensor]], step: int) -> None:
    mine = _samples(Painted(37, bad=(3, 11)), 6 - step, seen=16 * step, ranks=2)
    assert all(_same(*pair) for pair in zip(mine, reference[16 * step :], strict=True))


def test_law_1_whatever_the_global_generators_hold(reference: list[list[Tensor]]) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    before = torch.get_rng_state()
    mine = _samples(Painted(37, bad=(3, 11)), 1)
    assert all(_same(*pair) for pair in zip(mine, reference[:16], strict=True))
    assert torch.equal(torch.get_rng_state(), before), "the loader took a number from torch's"


def test_law_1_threads(reference: list[list[Tensor]]) -> None:
    torch.set_num_threads(2)
    try:
        mine = _samples(Painted(37, bad=(3, 11)), 1)
    finally:
        torch.set_num_threads(1)
    assert all(_same(*pair) for pair in zip(mine, reference[:16], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_law_1_outside_the_main_thread(reference: list[list[Tensor]], workers: int) -> None:
    """As under a web page or an executor, where no handler of signals can be set."""
    with ThreadPoolExecutor(1) as elsewhere:
        mine = elsewhere.submit(_samples, Painted(37, bad=(3, 11)), 1, workers=workers).result()
    assert all(_same(*pair) for pair in zip(mine, reference[:16], strict=True))


def test_law_1_workers_that_are_spawned(reference: list[list[Tensor]]) -> None:
    """They get the loader's parts pickled; here a pickle's copy must draw the same."""
    import pickle

    source = pickle.loads(pickle.dumps(Painted(37, bad=(3, 11))))
    assert all(_same(*pair) for pair in zip(_samples(source, 1), reference[:16], strict=True))


def test_each_picture_is_asked_for_once_an_epoch() -> None:
    settings = LoaderSettings(batch_size=8)
    batches = list(itertools.islice(training_batches(Painted(37), VIEWS, None, settings, 0), 14))
    epoch = torch.cat([batch.epoch for batch in batches])
    index = torch.cat([batch.index for batch in batches])
    for number in range(3):
        assert sorted(index[epoch == number].tolist()) == list(range(37))


def test_another_epoch_draws_another_view() -> None:
    batches = training_batches(Painted(8), VIEWS, MASKS, LoaderSettings(8), 0)
    first, second = next(batches), next(batches)
    assert first.patch_view is not None and second.patch_view is not None
    assert first.masks is not None and second.masks is not None
    one, other = int((first.index == 5).nonzero()), int((second.index == 5).nonzero())
    assert not torch.equal(first.patch_view[one], second.patch_view[other])
    assert not torch.equal(first.masks.grid[one], second.masks.grid[other])


def test_a_batch_has_the_shapes_and_types_promised() -> None:
    batch = next(training_batches(Painted(9), VIEWS, MASKS, LoaderSettings(4), 0))
    assert batch.patch_view is not None and batch.token_view is not None
    assert batch.patch_view.shape == (4, 3, 16, 16) and batch.patch_view.dtype == torch.uint8
    assert batch.token_view.shape == (4, 3, 8, 8)
    assert batch.masks is not None and batch.masks.grid.shape == (4, 4, 4)
    assert batch.index.dtype == batch.epoch.dtype == torch.int64
    assert batch.label is not None and torch.equal(batch.label, batch.index % 2)
    assert batch.colour is not None and batch.colour.order.shape == (4, 3)
    plain = ViewSettings(token_view=(8, 8), random=False)
    batch = next(training_batches(Painted(9), plain, None, LoaderSettings(4), 0))
    assert batch.patch_view is None and batch.masks is None and batch.colour is None


def test_a_bad_picture_is_named_and_replaced_by_its_own_rule() -> None:
    bad = (3, 11, 12)
    found: set[tuple[int, str]] = set()
    for batch in itertools.islice(
        training_batches(Painted(37, bad), VIEWS, None, LoaderSettings(37), 0), 2
    ):
        assert len(batch.index) == 37 and batch.patch_view is not None
        found |= set(batch.replaced)
        assert sorted(batch.index.tolist()) == list(range(37))
    assert found == {(index, "truncated") for index in bad}


@pytest.mark.parametrize("views", [None, 1])
def test_what_replaces_a_picture_is_seen_as_that_would_have_been(views: int | None) -> None:
    """By the sample's own key: a bank of views that are used again rests on it."""
    source = Painted(37, bad=(3,))
    settings = LoaderSettings(37, seed=5, views=views)
    batch = next(training_batches(source, VIEWS, None, settings, 37))  # the second epoch
    assert batch.patch_view is not None
    (row,) = (batch.index == 3).nonzero().flatten().tolist()
    key = Key(5, 1, 3, None if views is None else 0)
    others = (make_views(source.read(index), VIEWS, key)[0] for index in range(37) if index != 3)
    assert sum(torch.equal(other, batch.patch_view[row]) for other in others if other is not None)


def test_when_nothing_can_be_read_the_run_stops_with_names() -> None:
    source = Painted(5, bad=(0, 1, 2, 3, 4))
    for workers in (0, 1):
        settings = LoaderSettings(2, workers=workers)
        with pytest.raises(
            UserError, match=r"[1-5] of 5 .* were tried.*picture-\d \(truncated\)"
        ) as refusal:
            next(training_batches(source, VIEWS, None, settings, 0))
        assert "\n" not in str(refusal.value)


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(UserError, match="no picture"):
        next(training_batches(Painted(0), VIEWS, None, LoaderSettings(2), 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_each_picture_once_in_order(workers: int) -> None:
    views = ViewSettings((16, 16), random=False)
    batches = list(evaluation_batches(Painted(23, bad=(4,)), views, MASKS, 5, workers))
    assert [len(batch.index) for batch in batches] == [4, 5, 5, 5, 3]
    index = torch.cat([batch.index for batch in batches]).tolist()
    assert index == [place for place in range(23) if place != 4]
    assert batches[0].replaced == ((4, "truncated"),) and batches[0].colour is None


def test_evaluation_is_cut_into_ranks_without_repeats() -> None:
    views = ViewSettings((16, 16), random=False)
    whole = [
        row for batch in evaluation_batches(Painted(23), views, MASKS, 5) for row in rows_of(batch)
    ]
    parts = [
        row
        for rank in range(4)
        for batch in evaluation_batches(Painted(23), views, MASKS, 5, share=(rank, 4))
        for row in rows_of(batch)
    ]
    assert all(_same(*pair) for pair in zip(parts, whole, strict=True))


def test_a_bad_picture_alone_in_its_batch_is_logged(tmp_path: Path) -> None:
    source = Painted(3, bad=(2,))
    log = BadPictureLog(tmp_path, source, most=0.5)
    views = ViewSettings((16, 16), random=False)
    assert len(list(evaluation_batches(source, views, None, 1, log=log))) == 2
    assert log.count == 1


def _entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]


def test_bad_pictures_are_written_down_once(tmp_path: Path) -> None:
    source = Painted(100)
    log = BadPictureLog(tmp_path, source, most=0.1)
    log.add(())
    assert not (tmp_path / FILE_NAME).exists()
    log.add(((3, "truncated"), (4, "empty file")))
    log.add(((3, "truncated"),))
    assert _entries(tmp_path) == [
        {"index": 3, "path": "picture-3", "reason": "truncated"},
        {"index": 4, "path": "picture-4", "reason": "empty file"},
    ]
    resumed, other_rank = (BadPictureLog(tmp_path, source, most=0.1) for _ in range(2))
    resumed.add(((4, "empty file"), (5, "animated")))
    other_rank.add(((5, "animated"), (6, "animated")))
    assert [entry["index"] for entry in _entries(tmp_path)] == [3, 4, 5, 6]
    log.add(((6, "animated"),))
    assert log.count == 4


def test_too_many_bad_pictures_stop_the_run_with_the_list(tmp_path: Path) -> None:
    source = Painted(40, bad=(1, 2, 3))
    log = BadPictureLog(tmp_path, source, most=0.05)
    with pytest.raises(UserError, match=r"3 of 40 .*7\.5%.*picture-\d \(truncated\)") as stop:
        list(training_batches(source, VIEWS, None, LoaderSettings(40), 0, log=log))
    assert FILE_NAME in str(stop.value) and len(_entries(tmp_path)) == 3


def test_as_many_bad_pictures_as_are_allowed_do_not_stop_the_run(tmp_path: Path) -> None:
    log = BadPictureLog(tmp_path, Painted(40), most=0.05)
    log.add(((1, "truncated"), (2, "truncated")))
    assert log.count == 2
    with pytest.raises(UserError, match="more than the 5.0% allowed"):
        log.add(((3, "truncated"),))


def test_a_line_cut_by_a_crash_does_not_spoil_the_next(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"index": 1, "pa')
    BadPictureLog(tmp_path, Painted(10), most=1).add(((2, "truncated"),))
    last = (tmp_path / FILE_NAME).read_text().splitlines()[-1]
    assert json.loads(last)["index"] == 2
    again = BadPictureLog(tmp_path, Painted(10), most=1)
    again.add(((2, "truncated"),))
    assert again.count == 1


@pytest.mark.parametrize("lethal", [0, 1, 7])  # before, while and after a batch is handed over
@pytest.mark.usefixtures("no_orphans")
def test_a_killed_worker_names_the_picture_and_leaves_no_orphans(lethal: int) -> None:
    source = Painted(32, lethal=lethal)
    began = time.monotonic()
    with pytest.raises(LoaderError, match=rf"reading picture-{lethal} \(worker \d+"):
        for _ in itertools.islice(
            training_batches(source, VIEWS, None, LoaderSettings(4, workers=2), 0), 12
        ):
            pass
    assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.usefixtures("no_orphans")
def test_twenty_kills_are_twenty_names() -> None:
    for lethal in range(20):
        settings = LoaderSettings(4, workers=2, seed=lethal)
        with pytest.raises(LoaderError, match=rf"reading picture-{lethal} "):
            for _ in itertools.islice(
                training_batches(Painted(32, lethal=lethal), VIEWS, None, settings, 0), 12
            ):
                pass


@pytest.mark.usefixtures("no_orphans")
def test_a_hanging_worker_is_given_up_on_and_named() -> None:
    settings = LoaderSettings(4, workers=2, timeout=1.0)
    with pytest.raises(LoaderError, match=r"nothing for 1 s.* picture-7 \(.* for [1-9]"):
        for _ in itertools.islice(
            training_batches(Painted(32, slow=7), VIEWS, None, settings, 0), 12
        ):
            pass


@pytest.fixture
def no_orphans() -> Iterator[None]:
    """Every process that the test starts has to end with it; those of other tests are not ours."""
    before = set(multiprocessing.active_children())
    yield
    deadline = time.monotonic() + 15
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before


def test_a_dead_worker_does_not_interrupt_the_main_program_elsewhere() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    batches = training_batches(Painted(32), VIEWS, None, LoaderSettings(4, workers=1), 0)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_real_pictures_are_the_same_for_any_number_of_workers(imagenette: Path) -> None:
    from beit.data.sources.opening import open_source

    source = open_source(str(imagenette), "train")
    assert len(source) == 7000 and len(source.classes) == 10
    views, masks = ViewSettings((64, 64), (64, 64)), MaskPlan((8, 8), minimum_block=4)
    runs = [
        list(
            itertools.islice(
                training_batches(source, views, masks, LoaderSettings(8, workers=workers), 6996), 2
            )
        )
        for workers in (0, 2)
    ]
    for one, other in zip(*runs, strict=True):
        assert _same(tensors_of(one), tensors_of(other))
