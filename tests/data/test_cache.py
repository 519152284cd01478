"""An index that says the same again stays where it is, so that a run may go on using it."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.data.pairs import mask_survey
from beit.data.pairs.pair_files import FolderPairs
from beit.data.pairs.pairs import open_pairs
from beit.data.sources import cache
from beit.data.sources.opening import open_source
from data.pair_folders import pair_folder
from oracles.picture_zoo import saved, scene

DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": Path.unlink,
}
LONG_AGO = 1_600_000_000


def test_a_folder_that_is_opened_again_and_again_keeps_its_index(tmp_path: Path) -> None:
    """A folder that was changed a moment ago is looked at anew at each opening."""
    for number in range(30):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    first = open_source(str(tmp_path), "train")  # its arrays are not read yet
    for _ in range(5):
        again = open_source(str(tmp_path), "val")
        assert again.fingerprint.partition("-")[0] == first.fingerprint.partition("-")[0]
    assert np.asarray(first.read(0)).shape == (4, 4, 3)
    assert len(first) + len(again) == 30


def test_settling_is_noticed(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    open_source(str(tmp_path), "train")
    long_ago = 1_000_000_000
    os.utime(tmp_path, (long_ago, long_ago))
    before = open_source(str(tmp_path), "train")
    Image.new("RGB", (5, 5)).save(tmp_path / "two.png")
    os.utime(tmp_path, (long_ago, long_ago))  # hides it: the index is now taken as it is
    assert len(open_source(str(tmp_path), "train")) == len(before) == 1
    assert len(open_source(str(tmp_path), "train", rescan=True)) == 2
    (tmp_path / "one.png").unlink()
    assert len(open_source(str(tmp_path), "train")) == 1


def _folder(root: Path) -> Path:
    for number in range(3):
        home = root / f"class-{number % 2}"
        home.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(home / f"{number}.png")
        os.utime(home, (LONG_AGO, LONG_AGO))
    os.utime(root, (LONG_AGO, LONG_AGO))
    return root


def _shard(file: Path) -> Path:
    with tarfile.open(file, "w") as archive:
        for number in range(3):
            data = saved(Image.fromarray(scene(4, 4)), "PNG")
            member = tarfile.TarInfo(f"class-{number % 2}/{number}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    os.utime(file, (LONG_AGO, LONG_AGO))
    return file


def _arrays() -> set[str]:
    return {path.name for path in cache.cache_folder().rglob("*.npy")}


def _damage(name: str, how: str) -> None:
    for path in cache.cache_folder().rglob(name):
        DAMAGES[how](path)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", ["folder", "shard"])
def test_what_a_power_cut_has_left_is_indexed_anew(tmp_path: Path, kind: str, how: str) -> None:
    data = _folder(tmp_path / "data") if kind == "folder" else _shard(tmp_path / "data.tar")

    def told() -> list[object]:
        source = open_source(str(data), "train")
        names = [(source.identity(i), source.label(i), source.read(i).size) for i in range(3)]
        return [*names, source.fingerprint, source.classes]

    before = told()
    for name in sorted(_arrays()):
        _damage(name, how)
        assert told() == before, name


@pytest.mark.parametrize("how", DAMAGES)
def test_masks_are_looked_at_again_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    root, original = pair_folder(tmp_path), mask_survey._look_at_all
    before = open_pairs(str(root), "train").pixels
    looks: list[FolderPairs] = []

    def looking(pairs: FolderPairs, workers: int) -> mask_survey.Survey:
        looks.append(pairs)
        return original(pairs, workers)

    monkeypatch.setattr(mask_survey, "_look_at_all", looking)
    for name in ("counts.npy", "first.npy"):
        looks.clear()
        _damage(name, how)
        assert np.array_equal(open_pairs(str(root), "train").pixels, before) and looks


def test_masks_that_are_as_long_as_others_are_not_taken_for_them(tmp_path: Path) -> None:
    """A set and the same numbered otherwise: every file has the size of its twin."""
    found = []
    for name, numbers in (("one", (0, 1, 2)), ("other", (0, 1, 1))):
        for part in ("train", "val"):
            for place, number in enumerate(numbers):
                mask = np.full((16, 16), number, np.uint8)
                for folder, pixels in (
                    ("images", np.zeros((16, 16, 3), np.uint8)),
                    ("annotations", mask),
                ):
                    home = tmp_path / name / folder / part
                    home.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(home / f"{place}.png", compress_level=0)
        found.append(open_pairs(str(tmp_path / name), "train"))
    assert [len(source.classes) for source in found] == [3, 2]
    assert [source.pixels for source in found] == [(256, 256, 256), (256, 512)]


def test_all_of_an_index_has_reached_the_disk_before_it_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    in_force = []
    sync, replace = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def replacing(source: Path, target: Path) -> None:
        if Path(target).name == "current.json":
            (folder,) = (path for path in Path(target).parent.iterdir() if path.is_dir())
            in_force.append(folder)
            wanted = [source, folder, *folder.iterdir()]
            assert {os.stat(path).st_ino for path in wanted} <= synced
        replace(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    open_source(str(_folder(tmp_path / "data")), "train")
    assert len(in_force) == 1 and len(synced) <= 15  # a file each, the folders, what is in force


def test_what_a_kill_left_unfinished_goes_in_the_end(tmp_path: Path) -> None:
    data = _folder(tmp_path / "data")
    open_source(str(data), "train")
    (home,) = (cache.cache_folder() / "indices").iterdir()
    for age, old in (("young", False), ("old", True)):
        (home / f".{age}").mkdir()
        (home / f".{age}" / "blob.npy").touch()
        for name in (f".{age}", f".current-{age}", f"current.json.tmp-{age}"):
            (home / name).touch()
            if old:
                os.utime(home / name, (LONG_AGO, LONG_AGO))
    (data / "class-0" / "new.png").write_bytes(saved(Image.fromarray(scene(4, 4)), "PNG"))
    assert len(open_source(str(data), "train")) == 4
    left = {path.name for path in home.iterdir() if not path.name[0].isdigit()}
    assert left == {"current.json", ".young", ".current-young", "current.json.tmp-young"}
