import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.data.checking.remarks import remarks
from beit.data.decoding.decode import BadPicture
from beit.data.sources import ranges, shards
from beit.data.sources.opening import Source, open_source
from beit.data.sources.shards import ShardSource
from beit.errors import UserError
from oracles.picture_zoo import saved, scene

PICTURE = saved(Image.fromarray(scene()), "PNG")
LONG_AGO = 1_600_000_000


def _shard(path: Path, *names: str, kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for number, name in enumerate(names):
            _put(archive, name, _numbered(number))
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def _numbered(number: int) -> bytes:
    return saved(Image.fromarray(np.roll(scene(), number, 1)), "PNG")


def _put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _identities(source: Source) -> list[str]:
    return [source.identity(place) for place in range(len(source))]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_file_is_read_where_it_lies(tmp_path: Path, kind: int) -> None:
    names = ["./b/1.png", "a/2.png", "a/deep/3.png", "x" * 90 + ".png", "note.pkl", "é/🐈.png"]
    path = _shard(tmp_path / "all.tar", *names, kind=kind)
    source = open_source(str(path), "all")
    assert _identities(source) == sorted(
        ["b/1.png", "a/2.png", "a/deep/3.png", "x" * 90 + ".png", "é/🐈.png"], key=os.fsencode
    )
    assert source.classes == ("a", "b", "é")
    by_name = {source.identity(place): place for place in range(len(source))}
    for number, name in ((0, "b/1.png"), (1, "a/2.png"), (5, "é/🐈.png")):
        pixels = np.asarray(source.read(by_name[name]))
        assert np.array_equal(pixels, np.roll(scene(), number, 1))
    assert source.label(by_name["b/1.png"]) == 1 and source.label(by_name["x" * 90 + ".png"]) == -1
    assert sorted(os.listdir(tmp_path)) == ["all.tar"]


def test_hidden_members_are_passed_over_as_hidden_files_are(tmp_path: Path) -> None:
    """Archives made on a Mac hold `._a.png`, which is no picture, beside each `a.png`."""
    hidden = ["./._a.png", "._b.png", "./c/._d.png", ".thumbnails/e.png", "f/.old/g.png"]
    path = _shard(tmp_path / "all.tar", "./a.png", "../b.png", "/c/d.png", *hidden)
    assert _identities(open_source(str(path), "all")) == ["a.png", "b.png", "c/d.png"]


def test_hidden_files_and_folders_are_passed_over_as_in_a_folder(tmp_path: Path) -> None:
    hidden = ("._1.png", ".thumbs/1.png", "a/._1.png", "a/.thumbs/1.png")
    for prefix in ("", "./"):
        path = _shard(tmp_path / "all.tar", *(prefix + name for name in ("a/1.png", *hidden)))
        source = open_source(str(path), "all", rescan=True)
        assert _identities(source) == ["a/1.png"] and source.classes == ("a",)


def test_a_folder_of_shards_with_splits(tmp_path: Path) -> None:
    _shard(tmp_path / "train-000.tar", "cat/1.png", "dog/2.png")
    _shard(tmp_path / "train-001.tar", "cat/3.png")
    _shard(tmp_path / "val-000.tar", "cat/1.png")
    train, val = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "val")
    assert _identities(train) == ["train/cat/1.png", "train/cat/3.png", "train/dog/2.png"]
    assert _identities(val) == ["val/cat/1.png"] and train.classes == val.classes == ("cat", "dog")


def test_parts_told_by_a_word_of_the_shard_s_name(tmp_path: Path) -> None:
    """ImageNet as WebDataset has it; the validation shards were trained on once."""
    _shard(tmp_path / "imagenet1k-train-0000.tar", "1.png")
    _shard(tmp_path / "imagenet1k-train-00001-of-00002.tar", "2.png")
    _shard(tmp_path / "imagenet1k-validation-00.tar", "3.png")
    assert _identities(open_source(str(tmp_path), "train")) == ["train/1.png", "train/2.png"]
    assert _identities(open_source(str(tmp_path), "val")) == ["validation/3.png"]
    # Where no shard says that it is to be trained on, the word is none of ours.
    _shard(tmp_path / "b" / "crash-test-0.tar", "cat/1.png")
    _shard(tmp_path / "b" / "retrain-1.tar", "dog/1.png")
    assert open_source(str(tmp_path / "b"), "train").classes == ("cat", "dog")


def test_labels_beside_the_pictures_as_webdataset_keeps_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, text in (("x/0", b"12"), ("x/1", b"3\n"), ("x/2.5", b"12"), ("x/3", b"cat")):
            if name != "x/1":
                _put(archive, f"{name}.cls" if "." not in name else "x/2.cls", text)
            _put(archive, f"{name}.png", PICTURE)
            if name == "x/1":
                _put(archive, "x/1.cls", text)
        _put(archive, "x/4.png", PICTURE)
        _put(archive, "x/4.jxl", b"")
    source = open_source(str(tmp_path / "a.tar"), "all")
    assert source.classes == ("3", "12")
    assert [source.label(place) for place in range(5)] == [1, 0, 1, -1, -1]
    first = source.fingerprint
    _shard(tmp_path / "b" / "a.tar", *(f"x/{name}.png" for name in ("0", "1", "2.5", "3", "4")))
    other = open_source(str(tmp_path / "b" / "a.tar"), "all")
    assert other.fingerprint != first and other.classes == ("x",)
    assert "1 .jxl" in remarks(source)[0]


def test_shards_in_split_folders(tmp_path: Path) -> None:
    _shard(tmp_path / "train" / "0.tar", "cat/1.png")
    _shard(tmp_path / "val" / "0.tar", "dog/1.png")
    assert _identities(open_source(str(tmp_path), "train")) == ["train/cat/1.png"]
    assert open_source(str(tmp_path), "val").classes == ("cat", "dog")


def test_an_archive_beside_its_pictures_changes_nothing(tmp_path: Path) -> None:
    _shard(tmp_path / "backup.tar", "1.png")
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "2.png").write_bytes(PICTURE)
    assert _identities(open_source(str(tmp_path), "all")) == ["cats/2.png"]


def test_the_second_open_reads_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _shard(tmp_path / "all.tar", *(f"{number}.png" for number in range(50)))
    first = open_source(str(path), "train")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_pictures", None)
        second = open_source(str(path), "train")
    assert second.fingerprint == first.fingerprint and len(second) == len(first)
    _shard(path, "1.png", "2.png")
    assert len(open_source(str(path), "all")) == 2


def test_workers_get_paths_only_and_read_the_same(tmp_path: Path) -> None:
    path = _shard(tmp_path / "all.tar", *(f"{number}.png" for number in range(30)))
    source = open_source(str(path), "all")
    source.read(3)
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1500
    assert np.array_equal(np.asarray(copy.read(3)), np.asarray(source.read(3)))


def test_few_files_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_OPEN_FILES", 3)
    for number in range(8):
        _shard(tmp_path / f"{number}.tar", f"{number}.png")
    source = open_source(str(tmp_path), "all")
    assert isinstance(source, ShardSource)
    for place in [*range(8), *range(8)]:
        source.read(place)
        assert len(source._descriptors) <= 3


def test_a_hostile_archive_writes_nothing_and_lists_regular_pictures_only(tmp_path: Path) -> None:
    path = tmp_path / "data" / "evil.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        _put(archive, "../../outside.png", PICTURE)
        _put(archive, "/absolute.png", PICTURE)
        _put(archive, "code.pkl", b"cos\nsystem\n(S'touch /nowhere'\ntR.")
        for kind, name in (
            (tarfile.SYMTYPE, "link.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.FIFOTYPE, "pipe.png"),
            (tarfile.CHRTYPE, "device.png"),
            (tarfile.DIRTYPE, "folder.png"),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    source = open_source(str(path), "all")
    assert _identities(source) == ["absolute.png", "outside.png"]
    assert np.array_equal(np.asarray(source.read(0)), scene())
    assert os.listdir(tmp_path) == ["data"] and os.listdir(path.parent) == ["evil.tar"]


def test_a_cut_shard_gives_bad_pictures_not_wrong_ones(tmp_path: Path) -> None:
    path = _shard(tmp_path / "all.tar", "1.png", "2.png")
    source = open_source(str(path), "all")
    assert isinstance(source, ShardSource)
    os.truncate(path, int(source._array("start")[1]) + source.size(1) - 1)
    assert np.array_equal(np.asarray(source.read(0)), scene())
    with pytest.raises(BadPicture, match="truncated"):
        source.read(1)


def test_what_is_no_tar_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "noise.tar").write_bytes(os.urandom(4096))
    (tmp_path / "packed.tar").write_bytes(gzip.compress(b"x" * 4096))
    (tmp_path / "data.tar.gz").write_bytes(gzip.compress(b"x" * 4096))
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    cases = {
        "noise.tar": "not a readable tar",
        "packed.tar": "not a readable tar",
        "data.tar.gz": "compressed",
        "empty.tar": "no picture",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as refusal:
            open_source(str(tmp_path / name), "train")
        assert "\n" not in str(refusal.value)


def test_headers_that_lead_backwards_end(tmp_path: Path) -> None:
    """A negative size (base 256) makes old tarfile modules read the same header for ever."""
    path = _shard(tmp_path / "all.tar", "1.png", kind=tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[124:136] = b"\xff" * 10 + b"\xf8\x00"  # -2048
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\x00 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(UserError, match="not a readable tar"):
        open_source(str(path), "all")


@pytest.mark.parametrize("home", ["", "train"])
def test_a_folder_that_hides_shards_is_named(tmp_path: Path, home: str) -> None:
    """As when a run or a pack was put beside them."""
    _shard(tmp_path / "tars" / home / "0.tar", "a/1.png")
    open_source(str(tmp_path / "tars"), "all")
    (tmp_path / "tars" / "run").mkdir()
    with pytest.raises(UserError, match=r"because of the folder run beside .*; move run elsewhere"):
        open_source(str(tmp_path / "tars"), "all")
    (tmp_path / "photos" / "run").mkdir(parents=True)
    with pytest.raises(UserError, match="there is no picture in"):
        open_source(str(tmp_path / "photos"), "all")
