import hashlib
import json
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beit.data.checking.remarks import remarks
from beit.data.decoding import formats
from beit.data.sources import cache, index
from beit.data.sources.index import FolderSource
from beit.data.sources.opening import open_source
from beit.data.sources.path_names import PackedNames, printable
from beit.errors import UserError
from oracles.picture_zoo import saved, scene

PICTURE = saved(Image.fromarray(scene()), "PNG")
LONG_AGO = 1_600_000_000


def _fill(root: Path, *names: str | bytes) -> Path:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(PICTURE)
    _age(root)
    return root


def _age(root: Path) -> None:
    for folder, _, _ in os.walk(os.fsencode(root)):
        os.utime(folder, (LONG_AGO, LONG_AGO))


def _identities(spec: Path, split: Any = "all") -> list[str]:
    source = open_source(str(spec), split)
    return [source.identity(place) for place in range(len(source))]


def test_a_flat_folder_in_the_order_of_bytes(tmp_path: Path) -> None:
    _fill(tmp_path, "b.jpg", "a.PNG", "a/z.webp", "a.d/x.tif", "Z.jpeg", "note.txt", ".hidden.png")
    _fill(tmp_path, ".git/x.png", "a/.DS.jpg", "é.gif")
    names = _identities(tmp_path)
    assert names == sorted(names, key=os.fsencode)
    assert set(names) == {"b.jpg", "a.PNG", "a/z.webp", "a.d/x.tif", "Z.jpeg", "é.gif"}


def test_folders_are_classes_and_train_and_val_are_splits(tmp_path: Path) -> None:
    _fill(tmp_path, "train/dog/1.png", "train/cat/1.png", "train/cat/deep/2.png", "val/dog/3.png")
    _fill(tmp_path, "val/eel/4.png", "test/dog/5.png", "extra/6.png", "train/7.png")
    train, val = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "val")
    assert train.classes == val.classes == ("cat", "dog", "eel")
    assert [(train.identity(i), train.label(i)) for i in range(len(train))] == [
        ("train/7.png", -1),
        ("train/cat/1.png", 0),
        ("train/cat/deep/2.png", 0),
        ("train/dog/1.png", 1),
    ]
    assert [(val.identity(i), val.label(i)) for i in range(len(val))] == [
        ("val/dog/3.png", 1),
        ("val/eel/4.png", 2),
    ]
    assert len(open_source(str(tmp_path), "all")) == 8


@pytest.mark.parametrize("name", ["validation", "valid", "test", "VAL", "dev", "testing"])
def test_other_names_of_the_held_out_split(tmp_path: Path, name: str) -> None:
    _fill(tmp_path, "Train/1.png", f"{name}/2.png")
    assert _identities(tmp_path, "train") == ["Train/1.png"]
    assert _identities(tmp_path, "val") == [f"{name}/2.png"]


def test_ade20k_s_names_of_the_parts(tmp_path: Path) -> None:
    _fill(tmp_path, "images/training/1.png", "images/validation/2.png", "annotations/x.png")
    assert _identities(tmp_path, "train") == ["training/1.png"]
    assert _identities(tmp_path, "val") == ["validation/2.png"]
    assert open_source(str(tmp_path), "all").classes == ()


def test_a_train_is_a_class_among_vehicles(tmp_path: Path) -> None:
    """VOC and COCO have one; its pictures were the only ones once, and the buses left out."""
    _fill(tmp_path, *(f"{name}/{n}.png" for name in ("bus", "train") for n in range(4)))
    train = open_source(str(tmp_path), "train")
    assert len(train) == 8 and train.classes == ("bus", "train")
    # The same with folders in all of them, but not where only `train/` is divided.
    _fill(tmp_path / "b", *(f"{name}/in/{n}.png" for name in ("bus", "train") for n in range(4)))
    assert open_source(str(tmp_path / "b"), "train").classes == ("bus", "train")
    _fill(tmp_path / "c", "train/cat/1.png", "train/dog/2.png", "unlabelled/3.png")
    assert open_source(str(tmp_path / "c"), "train").classes == ("cat", "dog")


def test_other_parts_of_the_same_files_are_other_data(tmp_path: Path) -> None:
    """A run must not go on with other pictures than it began with, whatever beit reads them."""
    names = ["a/1.png", "a/2.png", "b/1.png"]
    prints = []
    for number, (training, held_out) in enumerate([("train", "val"), ("training", "val")]):
        folder = tmp_path / str(number)
        _fill(folder, *(f"{training}/{name}" for name in names), f"{held_out}/a/3.png")
        prints.append(open_source(str(folder), "train").fingerprint)
    # Paths, and then their sizes, as ever: runs of earlier versions go on.
    blob = b"".join(sorted(f"train/{name}".encode() for name in names)) + b"val/a/3.png"
    lengths = [len("train/a/1.png")] * 3 + [len("val/a/3.png")]
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    size = (tmp_path / "0" / "val/a/3.png").stat().st_size
    digest = hashlib.blake2b(offsets.tobytes() + blob, digest_size=16)
    digest.update(np.full(4, size, np.int64).tobytes())
    assert prints[0] == f"{digest.hexdigest()}-train" and prints[1] != prints[0]


def test_what_is_in_no_part_and_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    _fill(tmp_path, "train/a/1.png", "val/a/2.png", "test/3.png", "extra/4.png", "extra/5.png")
    _fill(tmp_path, "6.png", "train/a/7.JXL", "train/8.cr2", "train/9.jxl", ".hidden.jxl")
    left, foreign = remarks(open_source(str(tmp_path), "val"))
    assert "beside train/" in left and left.endswith("left out: 1 in no folder, 2 in extra")
    assert "1 .cr2, 2 .jxl; to use them convert them to JPEG" in foreign
    _fill(tmp_path / "plain", "a/1.png", "train/2.png")
    assert remarks(open_source(str(tmp_path / "plain"), "train")) == []
    _fill(tmp_path / "camera", "1.nef")
    with pytest.raises(UserError, match=r"no picture .* 1 .nef cannot be read: convert"):
        open_source(str(tmp_path / "camera"), "train")


def test_what_counts_as_a_picture_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package for telephones' pictures is put in, and what was listed before is out of date."""
    _fill(tmp_path, "1.png", "2.heic")
    without = formats.SUFFIXES - {b".heic"}
    with monkeypatch.context() as patch:
        patch.setattr(formats, "SUFFIXES", without)
        patch.setattr(formats, "FOREIGN_SUFFIXES", frozenset([b".heic"]))
        source = FolderSource(os.fsencode(tmp_path), "all")
        assert len(source) == 1 and "pip install" in remarks(source)[0]
    monkeypatch.setattr(formats, "SUFFIXES", without | {b".heic"})
    monkeypatch.setattr(formats, "FOREIGN_SUFFIXES", frozenset())
    source = FolderSource(os.fsencode(tmp_path), "all")
    assert len(source) == 2 and remarks(source) == []


def test_the_keyed_holdout_is_stable_when_files_are_added(tmp_path: Path) -> None:
    _fill(tmp_path, *(f"{number}.png" for number in range(400)))
    before = set(_identities(tmp_path, "val"))
    assert 8 <= len(before) <= 35
    assert before.isdisjoint(_identities(tmp_path, "train"))
    _fill(tmp_path, *(f"new-{number}.png" for number in range(100)))
    os.utime(tmp_path, (LONG_AGO + 1, LONG_AGO + 1))
    after = set(_identities(tmp_path, "val"))
    assert before == {name for name in after if not name.startswith("new")}


def test_few_pictures_are_all_trained_on(tmp_path: Path) -> None:
    _fill(tmp_path, *(f"{number}.png" for number in range(20)))
    assert len(_identities(tmp_path, "val")) == 0 and len(_identities(tmp_path, "train")) == 20
    _fill(tmp_path, "20.png")
    os.utime(tmp_path, (LONG_AGO + 1, LONG_AGO + 1))
    assert len(_identities(tmp_path, "val")) >= 1


NAMES = [
    "space and 🐈.png".encode(),
    b"new\nline.png",
    b"\xff\xfe not utf-8.png",
    b"<img onerror=alert(1)>.png",
    b"x" * 251 + b".png",
    b"back\\slash.png",
    b"-rf.png",
    "re\u202eversed.png".encode(),
]


def test_strange_names_are_read_and_printed_on_one_line(tmp_path: Path) -> None:
    _fill(tmp_path, *NAMES)
    source = open_source(str(tmp_path), "all")
    assert isinstance(source, FolderSource)
    assert sorted(source.path(i) for i in range(len(source))) == sorted(NAMES)
    shown = [source.identity(i) for i in range(len(source))]
    assert len(set(shown)) == len(NAMES)
    for number, name in enumerate(shown):
        assert name.isprintable() and json.loads(json.dumps(name)) == name
        name.encode("utf-8")
        assert np.array_equal(np.asarray(source.read(number)), scene())
    assert "space and 🐈.png" in shown and "\\xff\\xfe not utf-8.png" in shown


def test_printable_names_differ_when_names_differ() -> None:
    assert printable(b"a\nb") != printable(b"a\\nb")
    assert printable(b"\xff") != printable(b"\\xff")


class _Counted:
    """Counts what is asked of the file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        for name in ("stat", "scandir"):
            monkeypatch.setattr(os, name, self._counting(name, getattr(os, name)))

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return function(*values, **options)

        return counted


def test_200_000_paths_open_again_at_the_cost_of_their_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one file and not one directory's list is looked at; workers get no list of paths."""
    listed = [
        (f"{folder:02}/{number:07}.jpg".encode(), 1000 + number, number)
        for folder in range(20)
        for number in range(10_000)
    ]
    for folder in range(20):
        (tmp_path / f"{folder:02}").mkdir()
    _age(tmp_path)

    def entries(root: bytes, relative: bytes, foreign: object) -> list[tuple[bytes, int, int]]:
        if not relative:
            return [(f"{folder:02}/".encode(), -1, 0) for folder in reversed(range(20))]
        start = int(relative[:-1]) * 10_000
        return listed[start : start + 10_000][::-1]

    with monkeypatch.context() as patch:
        patch.setattr(index, "_entries", entries)  # the files themselves are not needed
        first = FolderSource(os.fsencode(tmp_path), "train")
    _check_second_open(first, tmp_path, monkeypatch)


def _check_second_open(first: FolderSource, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted(monkeypatch)
    second = FolderSource(os.fsencode(root), "train")
    assert counted.calls["scandir"] == 0
    assert 21 <= counted.calls["stat"] <= 60  # the 21 directories and a few of our own files
    assert second.fingerprint == first.fingerprint
    assert len(second) == 195_000  # 5,000 are held out at most
    assert second.path(12_345) == first.path(12_345)
    assert len(pickle.dumps(second)) < 2000
    again = pickle.loads(pickle.dumps(second))
    assert again.path(100_000) == second.path(100_000) and len(again) == len(second)


def test_changes_are_noticed(tmp_path: Path) -> None:
    _fill(tmp_path, "a/1.png", "b/2.png")
    first = open_source(str(tmp_path), "all").fingerprint
    assert open_source(str(tmp_path), "all").fingerprint == first
    (tmp_path / "a" / "3.png").write_bytes(PICTURE)
    added = open_source(str(tmp_path), "all")
    assert len(added) == 3 and added.fingerprint != first
    (tmp_path / "a" / "3.png").unlink()
    assert open_source(str(tmp_path), "all").fingerprint == first
    (tmp_path / "b" / "2.png").rename(tmp_path / "b" / "4.png")
    assert open_source(str(tmp_path), "all").fingerprint != first


def test_an_overwritten_file_is_noticed_by_a_rescan(tmp_path: Path) -> None:
    _fill(tmp_path, "1.png")
    first = open_source(str(tmp_path), "all").fingerprint
    (tmp_path / "1.png").write_bytes(PICTURE + b" ")
    assert open_source(str(tmp_path), "all").fingerprint == first
    assert open_source(str(tmp_path), "all", rescan=True).fingerprint != first


def test_a_folder_that_may_still_be_changing_is_looked_at_again(tmp_path: Path) -> None:
    """File systems keep times coarsely: a change right after the scan may leave no trace."""
    _fill(tmp_path, "1.png")
    os.utime(tmp_path)
    open_source(str(tmp_path), "all")
    (tmp_path / "2.png").write_bytes(PICTURE)
    status = os.stat(tmp_path)
    generation = cache.current_generation(cache.cache_key("folder", os.fsencode(tmp_path)))
    assert generation is not None
    np.save(generation / "directory_times.npy", np.array([status.st_mtime_ns]))
    assert len(open_source(str(tmp_path), "all")) == 2


def test_the_users_folder_is_not_written_to(tmp_path: Path) -> None:
    _fill(tmp_path, "a/1.png")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    source = open_source(str(tmp_path), "all")
    source.read(0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_moved_data_keep_their_fingerprint(tmp_path: Path) -> None:
    _fill(tmp_path / "here", "a/1.png")
    first = open_source(str(tmp_path / "here"), "train").fingerprint
    (tmp_path / "here").rename(tmp_path / "there")
    assert open_source(str(tmp_path / "there"), "train").fingerprint == first


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    _fill(tmp_path, "a/1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    assert _identities(tmp_path) == ["a/1.png"]


def test_a_damaged_cache_is_built_again(tmp_path: Path) -> None:
    _fill(tmp_path, "1.png")
    open_source(str(tmp_path), "all")
    for path in cache.cache_folder().rglob("current.json"):
        path.write_text("{")
    assert _identities(tmp_path) == ["1.png"]
    for path in cache.cache_folder().rglob("meta.json"):
        path.write_text("[]x")
    assert _identities(tmp_path) == ["1.png"]


def test_old_generations_go(tmp_path: Path) -> None:
    for number in range(6):
        _fill(tmp_path, f"{number}.png")
        os.utime(tmp_path, (LONG_AGO + number, LONG_AGO + number))
        assert len(open_source(str(tmp_path), "all")) == number + 1
    assert len(list(cache.cache_folder().rglob("meta.json"))) == 3


def test_ade20ks_layout_is_read_without_its_masks(tmp_path: Path) -> None:
    _fill(tmp_path, "images/train/1.jpg", "images/val/2.jpg", "annotations/train/1.png")
    assert _identities(tmp_path, "all") == ["train/1.jpg", "val/2.jpg"]


def test_mistakes_are_one_sentence_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("x")
    cases = {
        str(tmp_path / "photos"): r"no picture in .*photos: looked for .*\.jpg",
        str(tmp_path / "photoz"): r"no folder .*photoz; did you mean .*photos\?",
        "digit": r"did you mean digits\?",
        "torchvison:CIFAR10": r"did you mean torchvision\?",
        "hf:": r"write hf:NAME",
        str(tmp_path / "photos" / "a.txt"): "neither a folder nor a .tar",
    }
    for spec, message in cases.items():
        with pytest.raises(UserError, match=message) as refusal:
            open_source(spec, "train")
        assert "\n" not in str(refusal.value)


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(tmp_path / "data", "1.png")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set BEIT_CACHE"):
        open_source(str(tmp_path / "data"), "train")


def test_packed_names() -> None:
    names = [b"a", b"", b"long" * 100]
    offsets = np.cumsum([0, *(len(name) for name in names)])
    packed = PackedNames(np.frombuffer(b"".join(names), np.uint8), offsets)
    assert [packed[place] for place in range(len(packed))] == names
