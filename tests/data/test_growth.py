"""Opening costs the same for ten million pictures as for ten thousand; workers do not grow."""

import json
import multiprocessing
import os
import pickle
import statistics
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from beit.data.checking.check import info
from beit.data.checking.labels import choose_labels
from beit.data.loading.loader import LoaderSettings, training_batches
from beit.data.loading.order import locate
from beit.data.sources.arrays import ArraySource
from beit.data.sources.opening import Source, open_source
from beit.data.sources.packed_folder import PackedFolder
from beit.data.sources.subset import Subset
from beit.data.views.views import ViewSettings
from beit.randomness import sample_generator

MANY = 10_000_000
_NAME = b"train/000000000.jpg"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A pack of 10,000,000 entries in 10,000 shards: all holes, as nothing is to be read."""
    index = tmp_path / "index"
    (tmp_path / "train").mkdir()
    index.mkdir()
    kinds: dict[str, tuple[int, Any]] = {
        **dict.fromkeys(("shard", "labels"), (MANY, np.int32)),
        **dict.fromkeys(("start", "sizes", "train"), (MANY, np.int64)),
        **{"val": (0, np.int64), "shard_sizes": (10_000, np.int64)},
        **{"offsets": (MANY + 1, np.int64), "blob": (MANY * len(_NAME), np.uint8)},
    }
    for name, (count, kind) in kinds.items():
        _hollow(index / f"{name}.npy", count, kind)
    labels = np.load(index / "labels.npy", mmap_mode="r+")
    labels[-1] = 1
    train = np.load(index / "train.npy", mmap_mode="r+")
    train[-1] = MANY - 1
    meta = {"version": 2, "fingerprint": "f", "classes": [b"a".hex(), b"b".hex()]}
    (index / "meta.json").write_text(json.dumps(meta | {"shards": {"train": 10_000}}))
    for shard in np.linspace(0, 9_999, 64).astype(int):
        (tmp_path / "train" / f"{shard:05d}.tar").touch()
    return tmp_path


def _hollow(path: Path, count: int, kind: Any) -> None:
    """An array of zeros that takes no room."""
    with path.open("wb") as file:
        header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        file.truncate(file.tell() + count * np.dtype(kind).itemsize)


class _Looks:
    """Counts the looks at files."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        look = os.stat

        def counted(*values: Any, **options: Any) -> os.stat_result:
            self.count += 1
            return look(*values, **options)

        patch.setattr(os, "stat", counted)


def test_ten_million_pictures_are_mapped_and_not_read(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_source(str(many), "train")  # what is imported late
    looks = _Looks(monkeypatch)
    tracemalloc.start()
    try:
        source = open_source(str(many), "train")
        facts = len(source), source.label(0), source.label(MANY - 1), source.identity(MANY - 1)
        sent = pickle.dumps(source)
        again: PackedFolder = pickle.loads(sent)
        assert again.label(MANY - 1) == 1
        epochs, indices = locate(0, len(source), range(3 * MANY - 2, 3 * MANY + 2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert facts == (MANY, 0, 1, "")
    assert epochs.tolist() == [2, 2, 3, 3] and len(set(indices.tolist())) == 4
    assert peak < 1_000_000, f"{peak} bytes"  # one array of a byte a picture would be ten million
    assert looks.count < 150  # 64 of 10,000 shards, and files of our own
    assert len(sent) < 100_000  # the sizes of the shards


class _Labelled:
    """Knows all labels at once, and minds being asked one by one."""

    name, fingerprint = "labelled", "f"

    def __init__(self, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
        self._labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int, /) -> Image.Image:
        return Image.new("RGB", (3, 2))

    def identity(self, index: int, /) -> str:
        return str(index)

    def label(self, index: int, /) -> int:
        raise AssertionError("asked for a label of ten million")

    def labels(self) -> NDArray[np.int64]:
        return self._labels


def _drawn_labels(count: int, classes: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(-1, classes, count)


def test_classes_are_counted_at_once() -> None:
    labels = _drawn_labels(500, 3)
    found = info(_Labelled(labels, ("a", "b", "c", "empty")))
    assert found.classes == {
        **{name: int((labels == label).sum()) for label, name in enumerate("abc")},
        "empty": 0,
    }
    assert found.unlabelled == int((labels == -1).sum()) > 100
    assert found.pictures == sum(found.classes.values()) + found.unlabelled


def test_chosen_labels_are_those_of_looking_at_one_class_at_a_time() -> None:
    """The draw takes the members of a class in the order of the source."""
    labels = _drawn_labels(3000, 7)
    source: Source = _Labelled(labels, tuple("abcdefg"))
    chosen = choose_labels(source, "50/class", 3)
    expected = []
    for label in range(7):
        generator = sample_generator(3, epoch=0, index=label, stream="few-labels")
        expected += generator.permutation(np.flatnonzero(labels == label))[:50].tolist()
    assert isinstance(chosen, Subset)
    assert chosen.places.tolist() == sorted(expected)


def _own_megabytes() -> float:
    """Memory that the children have to themselves."""
    total = 0.0
    for child in multiprocessing.active_children():
        text = Path(f"/proc/{child.pid}/smaps_rollup").read_text()
        line = next(line for line in text.splitlines() if line.startswith("Pss_Anon"))
        total += int(line.split()[1]) / 1024
    return total


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells memory so")
def test_workers_do_not_grow() -> None:
    """A list of Python objects in the source would be copied page by page as it is read."""
    pixels = np.zeros((20_000, 8, 8, 3), np.uint8)
    labels = np.zeros(len(pixels), np.int64)
    source = ArraySource("zeros", pixels, labels, ["all"], np.arange(len(pixels)))
    settings = LoaderSettings(32, workers=2)
    batches = training_batches(source, ViewSettings(patch_view=(8, 8)), None, settings, 0)
    samples = []
    for step in range(2000):
        next(batches)
        if step % 20 == 0:
            samples.append(_own_megabytes())
    middle, end = statistics.median(samples[45:55]), statistics.median(samples[-10:])
    assert middle > 0 and end <= 1.05 * middle
