"""`probe` end to end on tiny models: what it returns, writes, keeps, prints and refuses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beit.commands.assembly.saved_models import save_encoder
from beit.commands.using import probing
from beit.commands.using.probing import probe
from beit.errors import UserError
from beit.evaluation.linear_probe import LayerScore, LinearSettings, MethodResult, ProbeResult
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.tokenizer import storage
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.presets import PRESETS

CONFIG = EncoderConfig(
    image_size=(16, 16), patch_size=(8, 8), width=16, depth=3, heads=2, relative_positions="shared"
)
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
BRIEF = LinearSettings(epochs=30, rates=(1e-2,))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_encoder(folder, Encoder(CONFIG), {})
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noisy pictures in three colours, a folder a colour."""
    folder = tmp_path_factory.mktemp("data") / "colours"
    for split, count in (("train", 10), ("val", 4)):
        _paint(folder / split, count)
    return folder


def _paint(folder: Path, count: int, names: tuple[str, ...] = tuple(COLOURS)) -> None:
    generator = np.random.default_rng(count)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = generator.integers(-55, 56, (20, 24, 3))
            pixels = (np.array(COLOURS[name]) + noise).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")


def test_all_methods_end_to_end(
    model: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "probe"
    found = probe(model, str(colours), out=out, method="all", settings=BRIEF)
    assert list(found["methods"]) == ["neighbours", "quick", "paper"]
    assert found["pictures"] == {"train": 30, "held_out": 6, "test": 12}
    assert found["most_frequent_class"] == pytest.approx(1 / 3)
    for name, method in found["methods"].items():
        assert [layer["block"] for layer in method["layers"]] == [1, 2, 3]
        best = method["layers"][method["best_block"] - 1]
        assert best["held_out"] == max(layer["held_out"] for layer in method["layers"])
        assert (method["test"], method["held_out"]) == (best["test"], best["held_out"])
        assert method["last_block_test"] == method["layers"][-1]["test"]
        assert method["test"] > 0.8, name
    assert json.loads((out / "probe.json").read_text()) == found
    page = (out / "probe.html").read_text()
    assert "logistic regression: best after block" in page and "data:image/png" in page
    with Image.open(out / "probe.png") as picture:
        assert picture.size == (1700, 840)
    said = capsys.readouterr()
    assert "after block  neighbours, held out   test" in said.out
    assert "best after block" in said.out and "computed" in said.err


def test_the_pictures_are_encoded_once(
    model: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = probe(model, str(colours), out=tmp_path, quiet=True)
    few = probe(model, str(colours), out=tmp_path, labels="5/class", quiet=True)

    def never(*_: object) -> None:
        raise AssertionError("the features were there")

    monkeypatch.setattr(probing, "pooled_batches", never)
    assert probe(model, str(colours), out=tmp_path, quiet=True) == first
    assert probe(model, str(colours), out=tmp_path, labels="5/class", quiet=True) == few
    probe(model, str(colours), out=tmp_path, method="neighbours", quiet=True)
    with pytest.raises(AssertionError, match="were there"):  # other labels are other pictures
        probe(model, str(colours), out=tmp_path, labels="4/class", quiet=True)


def test_pictures_edited_in_place_are_encoded_anew(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out, long_ago = tmp_path / "data", tmp_path / "out", 1_600_000_000
    for split in ("train", "val"):
        _paint(data / split, 4)
    for path in data.rglob("*"):  # so that the index is taken for settled
        os.utime(path, (long_ago, long_ago))
    os.utime(data, (long_ago, long_ago))
    probe(model, str(data), out=out, quiet=True)
    capsys.readouterr()
    edited = data / "val" / "red" / "00.png"
    pixels = edited.read_bytes()
    edited.write_bytes(pixels)  # of the same size
    probe(model, str(data), out=out, method="neighbours")
    assert "those kept are of other pictures" in capsys.readouterr().err
    edited.write_bytes((data / "val" / "blue" / "00.png").read_bytes())
    probe(model, str(data), out=out, method="neighbours")
    assert "those kept are of other pictures" in capsys.readouterr().err
    probe(model, str(data), out=out, method="neighbours")
    assert "those kept are" not in capsys.readouterr().err


def test_what_is_said_of_the_choice() -> None:
    scores = [(0.5, 0.9), (0.7, 0.6), (0.6, 0.8)]
    layers = tuple(LayerScore(held_out, test, 0.1) for held_out, test in scores)
    result = ProbeResult((MethodResult("quick", layers),), 100, 20, 50, 0.25)
    assert probing.sentences(result) == [
        "logistic regression: best after block 2 of 3, 60.0% on the test pictures "
        "(the last block: 80.0%); had the test pictures chosen, block 1 with 90.0%"
    ]
    level = tuple(LayerScore(held_out, 0.6, 0.1) for held_out, _ in scores)  # no block is better
    equal = ProbeResult((MethodResult("quick", level),), 100, 20, 50, 0.25)
    assert probing.sentences(equal) == [
        "logistic regression: best after block 2 of 3, 60.0% on the test pictures "
        "(the last block: 60.0%)"
    ]
    rows = [list(row) for row in probing.probe_table(result).rows]
    assert rows == [["1", "50.0", "90.0"], ["2", "70.0*", "60.0"], ["3", "60.0", "80.0"]]
    described = probing.describe_method(result.methods[0])
    assert described.pop("layers")[1] == {
        "block": 2,
        "held_out": 0.7,
        "test": 0.6,
        "penalty": 0.1,
    }
    assert described == {
        "best_block": 2,
        "held_out": 0.7,
        "test": 0.6,
        "last_block_test": 0.8,
        "best_block_on_test": 1,
        "best_test": 0.9,
    }


def test_nothing_is_left_or_printed_when_not_asked(
    model: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = probe(model, str(colours), quiet=True)
    assert found["methods"]["quick"]["test"] > 0.8
    assert capsys.readouterr() == ("", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_fewer_labels_are_learned_from_and_all_are_tested_on(model: Path, colours: Path) -> None:
    found = probe(model, str(colours), labels="5/class", seed=3, quiet=True)
    assert found["pictures"] == {"train": 15, "held_out": 3, "test": 12}


def test_another_size_resizes_positions_and_says_so(
    model: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = probe(model, str(colours), image_size=(32, 24))
    assert found["image_size"] == [32, 24]
    assert found["notes"] == [
        "positions resized from 2x2 to 4x3 (bicubic)",
        "relative table resized from 2x2 to 4x3 (geometric progression, cubic)",
    ]
    assert "positions resized" in capsys.readouterr().err


def test_a_broken_picture_is_left_out_and_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _paint(tmp_path / "data" / "train", 6)
    _paint(tmp_path / "data" / "val", 3)
    (tmp_path / "data" / "train" / "red" / "00.png").write_bytes(b"no picture")
    found = probe(model, str(tmp_path / "data"), method="neighbours")
    assert found["pictures"]["train"] == 17
    said = capsys.readouterr().err
    assert "cannot be read: 1" in said
    assert "train/red/00.png: not a readable" in said and "; left out\n" in said


def _refused(checkpoint: Path, data: Path | str, words: str, **options: str) -> None:
    """Refused in one sentence and before the model has seen a picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "pooled_batches", None)
        with pytest.raises(UserError, match=words) as refusal:
            probe(checkpoint, str(data), quiet=True, **options)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_unlabelled_pictures_are_refused(model: Path, colours: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for path in (colours / split).rglob("*.png"):
            (tmp_path / split / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    _refused(model, tmp_path, "have no classes: put those of each class into a folder")


def test_a_probe_leaves_nothing_among_the_pictures(model: Path, colours: Path) -> None:
    before = sorted(colours.rglob("*"))
    for out in (colours, colours / "probe"):
        with pytest.raises(UserError, match=r"probe\.png would be one of them"):
            probe(model, colours, out=str(out))
    assert sorted(colours.rglob("*")) == before


def test_a_single_class_is_refused(model: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        _paint(tmp_path / split, 3, ("red",))
    _refused(model, tmp_path, "single class, red")


def test_no_validation_pictures_are_refused(model: Path, tmp_path: Path) -> None:
    _paint(tmp_path / "train", 3)
    _refused(model, tmp_path / "train", "no validation pictures")


def test_a_tokenizer_is_refused(colours: Path, tmp_path: Path) -> None:
    storage.save(DiscreteVAE(PRESETS["digits"]), tmp_path / "tokenizer")
    _refused(tmp_path / "tokenizer", colours, "holds a tokenizer; a model with an encoder")


def test_impossible_requests_are_refused(model: Path, colours: Path) -> None:
    _refused(model, colours, "--method slow", method="slow")
    _refused(model, colours, "two pictures of a class", labels="1/class")
    with pytest.raises(UserError, match="do not divide"):
        probe(model, str(colours), image_size=(20, 16), quiet=True)
