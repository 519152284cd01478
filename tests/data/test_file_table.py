"""A set that has changed since is told from one that has not, by the first file that is other."""

import os
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from beit.data.pairs.pair_files import FolderPairs
from beit.data.sources import file_table
from beit.data.sources.file_table import FILE_NAME, FileTable, changed_files, files_of, keep_files
from beit.data.sources.index import FolderSource
from beit.data.sources.shards import ShardSource, find_shards
from beit.errors import UserError

NAMES = [f"{home}/{number}.jpg" for home in "ab" for number in range(4)]
LATER = 5_000_000_000  # ns


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in NAMES:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "photos"


def opened(folder: Path) -> FolderSource:
    return FolderSource(os.fsencode(folder), "train", rescan=True)


def kept(photos: Path) -> Path:
    folder = photos.parent / "run"
    folder.mkdir()
    keep_files(folder, opened(photos))
    return folder


def touch(file: Path) -> None:
    time_ns = file.stat().st_mtime_ns + LATER
    os.utime(file, ns=(time_ns, time_ns))


def edit(file: Path) -> None:
    """Other content of the same size, as an editor leaves it."""
    file.write_text(file.read_text().swapcase())
    touch(file)


@pytest.mark.parametrize("hashed", [file_table.HASHED, 0])
def test_every_kind_of_change_is_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch, hashed: int
) -> None:
    """Against the obvious: what was done to the files."""
    monkeypatch.setattr(file_table, "HASHED", hashed)
    run, chance = kept(photos), random.Random(0)
    assert changed_files(run, opened(photos)) is None
    for _ in range(40):
        folder = photos.parent / "other"
        shutil.copytree(photos, folder)  # with the times
        done: dict[str, str] = {}
        for name in chance.sample(NAMES, chance.randrange(1, 4)):
            how = done[name] = chance.choice(["edited", "removed", "longer", "added"])
            file = folder / name
            if how == "edited":
                edit(file)
            elif how == "removed":
                file.unlink()
            elif how == "longer":
                file.write_text(name + " ")
                done[name] = "edited"
            else:
                del done[name]
                file.with_name(file.name + ".png").write_text("new")
                done[name + ".png"] = "added"
        first = min(done)
        others = {0: "", 1: ", and 1 more file differs", 2: ", and 2 more files differ"}
        expected = f"{first} was {done[first]}{others[len(done) - 1]}"
        assert changed_files(run, opened(folder)) == expected
        shutil.rmtree(folder)


def test_times_alone_do_not_matter_where_content_is_known(photos: Path) -> None:
    run = kept(photos)
    touch(photos / NAMES[2])
    assert changed_files(run, opened(photos)) is None


def test_without_hashes_a_copy_is_the_same_and_a_touched_file_is_not(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_table, "HASHED", 0)
    run = kept(photos)
    touch(photos / NAMES[2])
    assert changed_files(run, opened(photos)) == f"{NAMES[2]} was edited"
    for name in NAMES:
        touch(photos / name)
    assert changed_files(run, opened(photos)) is None


def test_without_hashes_a_copy_with_another_picture_in_it_is_no_copy(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_table, "HASHED", 0)
    run = kept(photos)
    for name in NAMES:
        touch(photos / name)
    (photos / NAMES[5]).write_text("a longer text")
    change = changed_files(run, opened(photos))
    assert change is not None and "was edited" in change


def test_what_is_kept_is_replaced_only_when_it_is_other(photos: Path) -> None:
    run = kept(photos)
    before = (run / FILE_NAME).stat().st_ino
    keep_files(run, opened(photos))
    assert (run / FILE_NAME).stat().st_ino == before
    touch(photos / NAMES[0])
    keep_files(run, opened(photos))
    edit(photos / NAMES[1])
    assert changed_files(run, opened(photos)) == f"{NAMES[1]} was edited"


def test_too_many_files_and_unknown_ones_are_not_kept(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept(photos)
    monkeypatch.setattr(file_table, "LISTED", 3)
    keep_files(run, opened(photos))
    assert not (run / FILE_NAME).exists() and changed_files(run, opened(photos)) is None
    assert files_of(object()) is None


def test_a_damaged_list_is_an_error(photos: Path) -> None:
    run = kept(photos)
    whole = (run / FILE_NAME).read_bytes()
    for damaged in (b"", b"no archive", whole[: len(whole) // 2]):
        (run / FILE_NAME).write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            changed_files(run, opened(photos))


def test_masks_count_as_pictures_do(tmp_path: Path) -> None:
    for part in ("images", "annotations"):
        (tmp_path / part / "train").mkdir(parents=True)
        (tmp_path / part / "train" / "a.png").write_text(part)

    def pairs() -> FolderPairs:
        images, masks = (os.fsencode(tmp_path / p / "train") for p in ("images", "annotations"))
        return FolderPairs((images, masks), rescan=True)

    (tmp_path / "run").mkdir()
    keep_files(tmp_path / "run", pairs())
    edit(tmp_path / "annotations" / "train" / "a.png")
    change = changed_files(tmp_path / "run", pairs())
    assert change == "annotations/train/a.png was edited"


@pytest.mark.parametrize("single", [True, False])
def test_of_shards_the_archive_is_named(photos: Path, tmp_path: Path, single: bool) -> None:
    archive = tmp_path / "shards" / "0.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        tar.add(photos, "photos")
    root = os.fsencode(archive if single else archive.parent)

    def shards() -> ShardSource:
        return ShardSource(root, find_shards(root), "all")

    (tmp_path / "run").mkdir()
    keep_files(tmp_path / "run", shards())
    assert changed_files(tmp_path / "run", shards()) is None
    data = bytearray(archive.read_bytes())
    data[data.rindex(b"a/1.jpg")] ^= 1  # of the picture, not of its header
    archive.write_bytes(data)
    touch(archive)
    assert changed_files(tmp_path / "run", shards()) == "0.tar was edited"


def test_a_table_is_sorted_whatever_comes_first() -> None:
    table = FileTable.of(b"/", [(b"b", 2, 20), (b"a/c", 1, 10)])
    assert list(table.rows(b"x")) == [(b"x/a/c", 1, 10), (b"x/b", 2, 20)]
    assert len(FileTable.of(b"/", [])) == 0
