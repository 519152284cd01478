import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beit.data.decoding.decode import BadPicture
from beit.data.pack import PackSettings, pack
from beit.data.sources.arrays import digits, stratified
from beit.data.sources.hub import HubSource
from beit.data.sources.opening import HasBytes, labels_of, open_source
from beit.errors import UserError
from oracles.picture_zoo import saved, scene


def test_digits_are_there_without_a_download() -> None:
    train, val, whole = (digits(split) for split in ("train", "val", "all"))
    assert len(train) + len(val) == len(whole) == 1797
    assert train.classes == tuple("0123456789")
    names = {train.identity(i) for i in range(len(train))}
    assert names.isdisjoint(val.identity(i) for i in range(len(val)))
    image = np.asarray(whole.read(0))
    assert image.shape == (8, 8, 3) and image.max() > 230
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    assert np.array_equal(image[..., 0], np.rint(scans[0].reshape(8, 8) / 16 * 255))
    assert [whole.label(i) for i in range(20)] == labels[:20].tolist()


def test_a_fifth_of_every_digit_is_held_out_always_the_same() -> None:
    val = open_source("digits", "val")
    counts = np.bincount([val.label(i) for i in range(len(val))])
    assert counts.min() >= 34 and counts.max() <= 37
    assert val.fingerprint == open_source("digits", "val").fingerprint
    assert val.fingerprint != open_source("digits", "train").fingerprint


def test_stratified_takes_the_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 50, 1])
    chosen = stratified(labels, 0.2)
    assert np.bincount(labels[chosen], minlength=3).tolist() == [2, 10, 0]


def test_torchvisions_fake_data() -> None:
    train, val = (
        open_source("torchvision:FakeData", "train"),
        open_source("torchvision:FakeData", "val"),
    )
    assert len(train) + len(val) == 1000 and 25 <= len(val) <= 80
    image = train.read(3)
    assert image.mode == "RGB" and image.size == (224, 224)
    assert np.array_equal(np.asarray(image), np.asarray(train.read(3)))
    assert train.identity(0).startswith("torchvision:FakeData/")
    assert 0 <= train.label(3) < len(train.classes)
    assert pickle.loads(pickle.dumps(train)).label(3) == train.label(3)


_FILES = {
    "Flowers102": "_image_files",
    "OxfordIIITPet": "_images",
    "Food101": "_image_files",
    "DTD": "_image_files",
    "EuroSAT": "samples",
}


@pytest.mark.parametrize("name", _FILES)
def test_files_of_torchvisions_sets_go_through_our_decoder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turned picture is turned, and a file that is no picture of ours is refused by name."""
    from torchvision import datasets

    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(scene()).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    files = [tmp_path / "turned.png", tmp_path / "page.jpg"]

    class Part:
        classes = ["a", "b"]

        def __init__(self, *_: object, **__: object) -> None:
            paths = [(str(f), 0) for f in files] if name == "EuroSAT" else files
            labels = "targets" if name == "EuroSAT" else "_labels"
            self.__dict__.update({_FILES[name]: paths, labels: [0, 1]})

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, place: int) -> tuple[Image.Image, int]:
            raise AssertionError("torchvision opens it")

    monkeypatch.setattr(datasets, name, Part)
    source = open_source(f"torchvision:{name}:{tmp_path}", "all")
    both = 1 if name == "EuroSAT" else 2  # parts
    assert isinstance(source, HasBytes) and len(source) == 2 * both
    assert np.array_equal(np.asarray(source.read(0)), np.rot90(scene(), -1))
    assert source.label(1) == 1
    with pytest.raises(BadPicture, match="not a readable JPEG"):
        source.read(1)


def test_a_part_held_out_has_its_own_pictures_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of one part: picture, label and name are of one place, on both sides of the cut."""
    from torchvision import datasets

    for number in range(80):
        Image.new("RGB", (4, 4), (number,) * 3).save(tmp_path / f"{number}.png")

    class Part:
        classes = list("abcdefg")
        samples = [(str(tmp_path / f"{number}.png"), number % 7) for number in range(80)]
        targets = [number % 7 for number in range(80)]

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __len__(self) -> int:
            return 80

    monkeypatch.setattr(datasets, "EuroSAT", Part)
    found = []
    for split in ("train", "val"):
        source = open_source(f"torchvision:EuroSAT:{tmp_path}", split)
        numbers = [int(np.asarray(source.read(index))[0, 0, 0]) for index in range(len(source))]
        assert [source.label(index) for index in range(len(source))] == [n % 7 for n in numbers]
        assert [source.identity(index) for index in range(len(source))] == [
            f"torchvision:EuroSAT/{number}" for number in numbers
        ]
        assert labels_of(source).tolist() == [number % 7 for number in numbers]
        found.append(numbers)
    assert len(found[1]) > 1 and sorted(found[0] + found[1]) == list(range(80))


def test_the_paths_are_where_torchvision_keeps_them() -> None:
    """By its own code: none of these sets is here to be opened."""
    import inspect

    from torchvision import datasets

    for name, attribute in _FILES.items():
        kind = getattr(datasets, name)
        code = "".join(inspect.getsource(each) for each in kind.__mro__[:3] if each is not object)
        assert f"self.{attribute}" in code, name


def test_an_unknown_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"did you mean CIFAR10\?"):
        open_source("torchvision:CIFAR-10", "train")
    with pytest.raises(UserError, match="known here"):
        open_source("torchvision:os.system", "train")


def test_without_a_network_the_message_tells_where_to_put_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    def unreachable(*_: object, download: bool = False, **__: object) -> None:
        raise OSError("Name or service not known") if download else RuntimeError("not found")

    monkeypatch.setattr(datasets, "CIFAR10", unreachable)
    with pytest.raises(UserError, match=r"could not be downloaded \(Name or service"):
        open_source(f"torchvision:CIFAR10:{tmp_path}", "train")


def test_without_the_hub_extra_the_message_tells_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'pip install "beit\[hub\]"'):
        open_source("hf:beans", "train")


class _ImageFeature:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class _Rows:
    """As much of a hub data set as is used."""

    _fingerprint = "abc"

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        self.rows, self.features = rows, features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[place]

    def cast_column(self, column: str, feature: Any) -> "_Rows":
        assert column == "photo" and feature.decode is False
        return self

    def select_columns(self, columns: list[str]) -> "_Rows":
        return _Rows([{c: row[c] for c in columns} for row in self.rows], self.features)


def _hub(
    monkeypatch: pytest.MonkeyPatch, parts: dict[str, _Rows], cache: Path = Path("/none")
) -> None:
    module = types.ModuleType("datasets")
    config = types.SimpleNamespace(HF_DATASETS_CACHE=cache)
    module.__dict__.update(load_dataset=lambda name: parts, Image=_ImageFeature, config=config)
    monkeypatch.setitem(sys.modules, "datasets", module)


def _rows(count: int) -> _Rows:
    labels = type("ClassLabel", (), {"names": ["a", "b"]})()
    features = {"photo": type("Image", (), {})(), "text": object(), "kind": labels}
    data = saved(Image.fromarray(scene()), "PNG")
    rows = [{"photo": {"bytes": data, "path": None}, "kind": i % 2} for i in range(count)]
    return _Rows(rows, features)


def test_a_hub_set_is_read_by_our_own_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    train = _rows(30)
    train.rows[4]["photo"] = {"bytes": b"GIF", "path": None}
    train.rows[5]["photo"] = None
    _hub(monkeypatch, {"train": train, "validation": _rows(7)})
    source = open_source("hf:someone/photos", "train")
    assert isinstance(source, HubSource) and len(source) == 30
    assert len(open_source("hf:someone/photos", "val")) == 7
    assert source.classes == ("a", "b") and source.label(3) == 1
    assert np.array_equal(np.asarray(source.read(3)), scene())
    assert source.identity(3) == "hf:someone/photos/3"
    for place in (4, 5):
        with pytest.raises(BadPicture):
            source.read(place)


def test_a_row_names_no_file_outside_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, mine = tmp_path / "cache", tmp_path / "mine.png"
    (cache / "set").mkdir(parents=True)
    inside = cache / "set" / "own.png"
    for file in (mine, inside):
        Image.fromarray(scene()).save(file)
    (cache / "set" / "link.png").symlink_to(mine)
    outside = [mine, cache / ".." / "mine.png", cache / "set" / "link.png", Path("mine.png")]
    rows = _rows(1 + len(outside))
    for row, path in zip(rows.rows, [inside, *outside], strict=True):
        row["photo"] = {"bytes": None, "path": str(path)}
    _hub(monkeypatch, {"train": rows}, cache)
    monkeypatch.chdir(tmp_path)
    source = open_source("hf:photos", "train")
    assert np.array_equal(np.asarray(source.read(0)), scene())
    assert isinstance(source, HasBytes) and source.read_bytes(0) == inside.read_bytes()
    for place in range(1, len(rows)):
        with pytest.raises(BadPicture, match="outside the data set"):
            source.read(place)


def test_a_hub_set_is_packed_without_writing_its_jpegs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [saved(Image.fromarray(scene(20, 24 + more)), "JPEG", quality=60) for more in range(3)]
    rows = _rows(len(files))
    for row, data in zip(rows.rows, files, strict=True):
        row["photo"] = {"bytes": data, "path": None}
    _hub(monkeypatch, {"train": rows})
    pack({"train": open_source("hf:photos", "all")}, tmp_path / "pack", PackSettings())
    packed = open_source(str(tmp_path / "pack"), "train")
    assert isinstance(packed, HasBytes)
    assert [packed.read_bytes(place) for place in range(len(packed))] == files


@pytest.mark.parametrize("version", [3, 4])
def test_a_loading_script_is_never_run(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """Version 3 runs them by default where HF_DATASETS_TRUST_REMOTE_CODE is set."""
    asked: list[bool | None] = []

    def third(name: str, trust_remote_code: bool | None = None) -> dict[str, _Rows]:
        asked.append(trust_remote_code)
        return {"train": _rows(5)}

    def fourth(name: str) -> dict[str, _Rows]:
        return {"train": _rows(5)}

    _hub(monkeypatch, {})
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", third if version == 3 else fourth)
    assert len(open_source("hf:photos", "all")) == 5
    assert asked == ([False] if version == 3 else [])


def test_a_hub_set_without_a_second_part_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, {"train": _rows(200)})
    train, val = open_source("hf:photos", "train"), open_source("hf:photos", "val")
    assert len(train) + len(val) == 200 and 3 <= len(val) <= 20


def test_a_hub_set_of_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, {"train": _Rows([], {"text": object()})})
    with pytest.raises(UserError, match="no column of pictures"):
        open_source("hf:stories", "train")
