"""Packed pictures: the same order, labels and splits, nearly the same pixels, whatever stopped."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beit.cli import main
from beit.commands.preparing import packing as command
from beit.data import pack as packing
from beit.data.checking.labels import check_classes
from beit.data.decoding.decode import BadPicture
from beit.data.pack import PackSettings, pack
from beit.data.sources import packed_folder
from beit.data.sources.opening import Source, open_source
from beit.data.sources.shards import find_shards
from beit.errors import UserError
from oracles.picture_zoo import scene

CLASSES = ("ant", "bee")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of two classes in both splits, of many shapes; one is bad, one is tiny."""
    root = tmp_path / "pictures"
    for split, count in (("train", 11), ("val", 5)):
        for number in range(count):
            home = root / split / CLASSES[number % 2]
            home.mkdir(parents=True, exist_ok=True)
            size = (40 + 7 * number, 90 - 3 * number) if number else (9, 12)
            image = Image.fromarray(scene(*size))
            suffix = ("png", "jpg")[number % 3 == 0]
            image.save(home / f"p{number:02d}.{suffix}", quality=75)
    (root / "train" / "bee" / "p04.jpg").write_bytes(b"no picture")
    return root


def packed(folder: Path, out: Path, *more: str) -> int:
    words = ["--short-side", "32", "--shard-size", "3", "--workers", "0", *more]
    return main(["data", "pack", str(folder), "--out", str(out), *words])


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def good(source: Source) -> list[int]:
    return [i for i in range(len(source)) if "p04.jpg" not in source.identity(i)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_order_labels_names_and_pixels_are_kept(folder: Path, tmp_path: Path, split: Any) -> None:
    out = tmp_path / "out"
    assert packed(folder, out) == 0
    before, after = open_source(str(folder), split), open_source(str(out), split)
    places = good(before)
    assert len(after) == len(places) == {"train": 11, "val": 5}[split]
    assert after.classes == before.classes == CLASSES
    assert [after.label(i) for i in range(len(after))] == [before.label(i) for i in places]
    assert [after.identity(i) for i in range(len(after))] == [before.identity(i) for i in places]
    for ours, theirs in enumerate(places):
        image, original = after.read(ours), before.read(theirs)
        assert min(image.size) == min(32, *original.size)  # never enlarged
        expected = original.resize(image.size, Image.Resampling.LANCZOS)
        error = np.abs(np.asarray(image, float) - np.asarray(expected, float)).mean()
        assert error < 6, error
        wrong = np.abs(np.asarray(image, float) - np.asarray(expected, float)[::-1]).mean()
        assert wrong > 2 * error


def test_what_chance_held_out_stays_so(tmp_path: Path) -> None:
    """Then a class of which none was held out is no mistake of the user's, as in the folder."""
    names = [f"{number:02}" for number in range(12)]
    for name in names:
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (2, 2)).save(tmp_path / "pictures" / name / f"{number}.png")
    assert packed(tmp_path / "pictures", tmp_path / "out") == 0
    train, val = (open_source(str(tmp_path / "out"), split) for split in ("train", "val"))
    assert getattr(val, "held_out", False) and not getattr(train, "held_out", True)
    check_classes(train, val)
    assert 0 < len({val.label(place) for place in range(len(val))}) < len(names)


def test_bad_pictures_are_named_and_left_out(folder: Path, tmp_path: Path, capfd: Any) -> None:
    assert packed(folder, tmp_path / "out", "--json") == 0
    lines = (tmp_path / "out" / packing.BAD).read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["train/bee/p04.jpg"]
    told = capfd.readouterr()
    result = json.loads(told.out.splitlines()[-1])
    assert (result["pictures"], result["bad"], result["shards"]) == (16, 1, 6)
    assert "17 of 17 pictures" in told.err and "1 of 17 pictures cannot be read" in told.err


def test_a_picture_too_long_for_a_jpeg_is_named_and_left_out() -> None:
    long = Image.new("RGB", (70_000, 3))
    with pytest.raises(BadPicture, match="70000 x 3 pixels, too long for a JPEG"):
        packing.encoded(long, b"", PackSettings(short_side=8))
    assert packing.encoded(long, b"", PackSettings(short_side=2))[:2] == b"\xff\xd8"


def test_a_small_jpeg_keeps_its_bytes(tmp_path: Path) -> None:
    Image.fromarray(scene(20, 24)).save(tmp_path / "a.jpg", quality=60)
    data = (tmp_path / "a.jpg").read_bytes()
    image = Image.open(tmp_path / "a.jpg").convert("RGB")
    assert packing.encoded(image, data, PackSettings(short_side=20, quality=95)) == data
    assert packing.encoded(image, data, PackSettings(short_side=19, quality=95)) != data
    assert len(packing.encoded(image, data, PackSettings(short_side=20, quality=5))) < len(data)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_processes_change_no_byte(folder: Path, tmp_path: Path, workers: str) -> None:
    assert packed(folder, tmp_path / "one") == 0
    assert packed(folder, tmp_path / "other", "--workers", workers) == 0
    assert digest(tmp_path / "one") == digest(tmp_path / "other")


def test_as_many_processes_as_cores_are_allowed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def alone(sources: Any, out: Path, settings: PackSettings, workers: int, told: Any) -> Any:
        found.append(workers)
        return pack(sources, out, settings, 0, told)

    monkeypatch.setattr(command, "pack", alone)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for allowed in ({2, 5, 9}, {4}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, a=allowed: a, raising=False)
        assert main(["data", "pack", str(folder), "--out", str(tmp_path / str(len(allowed)))]) == 0
    assert found == [3, 0]


def test_an_interrupted_pack_is_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert packed(folder, tmp_path / "whole") == 0
    done: list[int] = []
    encode = packing.encoded

    def encoding(*arguments: Any) -> bytes:
        done.append(1)
        if len(done) == 8:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(packing, "encoded", encoding)
    assert packed(folder, tmp_path / "out") == 130
    assert not (tmp_path / "out").exists()
    assert packed(folder, tmp_path / "out", "--quality", "80") == 2
    assert "the beginning of another pack (quality 90 there, 80 here)" in capfd.readouterr().err
    done[:] = [1] * 8
    assert packed(folder, tmp_path / "out") == 0
    assert len(done) - 8 == 16 - 6  # two shards of three were whole
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
    assert packed(folder, tmp_path / "out") == 2  # it is there already
    monkeypatch.undo()


def test_the_index_needs_the_shards_as_they_were(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert packed(folder, out) == 0
    (out / "val" / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"lacks val/00001.tar"):
        open_source(str(out), "train")
    (out / "index" / "meta.json").write_text("{")
    with pytest.raises(UserError, match=r"index .* cannot be read"):
        open_source(str(out), "train")


def test_a_shard_that_was_not_looked_at_when_opened_makes_bad_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at all of thousands would make opening a large pack slow."""
    out = tmp_path / "out"
    assert packed(folder, out) == 0
    shard = out / "train" / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    monkeypatch.setattr(packed_folder, "_LOOKED_AT", 2)  # the first and the last
    source = open_source(str(out), "train")
    source.read(0)
    with pytest.raises(BadPicture, match=r"train/00001.tar is not there as it was packed"):
        source.read(3)
    source.read(len(source) - 1)


def test_packs_of_another_version_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert packed(folder, out) == 0
    manifest = out / "index" / packed_folder.MANIFEST
    meta = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(meta | {"version": meta["version"] + 1}))
    with pytest.raises(UserError, match="packed by another version"):
        open_source(str(out), "val")


def test_other_programs_can_read_the_shards(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert packed(folder, out) == 0
    (out / "index").rename(tmp_path / "index")
    assert find_shards(str(out).encode())
    source = open_source(str(out), "train")
    assert len(source) == 11 and source.classes == CLASSES


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    """The digits come in no order of classes, and keep it."""
    sources = {"train": open_source("digits", "train"), "val": open_source("digits", "val")}
    (tmp_path / "out").mkdir()
    pack(sources, tmp_path / "out", PackSettings(shard_size=500))
    after = open_source(str(tmp_path / "out"), "val")
    labels = [after.label(i) for i in range(len(after))]
    assert labels == [sources["val"].label(i) for i in range(len(sources["val"]))]
    assert after.classes == sources["val"].classes and labels != sorted(labels)


def test_masks_are_refused(tmp_path: Path, capfd: Any) -> None:
    for name in ("images", "annotations"):
        (tmp_path / "pairs" / name).mkdir(parents=True)
    assert packed(tmp_path / "pairs", tmp_path / "out") == 2
    assert "masks beside its pictures, which cannot be packed" in capfd.readouterr().err


def test_a_link_is_followed_to_the_folder_that_is_made(folder: Path, tmp_path: Path) -> None:
    """An empty folder elsewhere, and one that is not there yet."""
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        link = tmp_path / f"link-to-{name}"
        link.symlink_to(tmp_path / name)
        assert packed(folder, link) == 0
        assert link.is_symlink() and (tmp_path / name / "index").is_dir()
        assert len(open_source(str(link), "train")) == 11


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert packed(folder, Path("/")) == 2
    assert "/ is there already" in capfd.readouterr().err
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) == str(mounted))
    assert packed(folder, mounted) == 2
    assert "mounted is where a disk is mounted; choose a folder in it" in capfd.readouterr().err
    assert not (tmp_path / "mounted.partial").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_full_disk_is_told_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, workers: str
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing, "fsync_file", full)  # workers are forked and have it too
        assert packed(folder, tmp_path / "out", "--workers", workers) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "cannot be filled (No space left on device)" in lines[0]
    assert packed(folder, tmp_path / "out") == 0


def test_odd_names_are_those_of_the_source(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, a line break, a backslash: escaped once, in classes and pictures."""
    root = tmp_path / "pictures"
    for number, name in enumerate((b"\xff", b"a\nb", b"c\\d", "é".encode())):
        home = root / os.fsdecode(name)
        home.mkdir(parents=True)
        Image.fromarray(scene(20, 24)).save(home / f"{number}.png")
    assert packed(root, tmp_path / "out") == 0
    before, after = (open_source(str(path), "train") for path in (root, tmp_path / "out"))
    assert after.classes == before.classes and {"\\xff", "a\\nb", "c\\\\d", "é"} == set(
        after.classes
    )
    named = [
        [source.identity(i).removeprefix("train/") for i in range(4)] for source in (before, after)
    ]
    assert named[0] == named[1]
