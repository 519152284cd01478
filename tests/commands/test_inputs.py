"""`beit.inputs` gives what predictions and evaluations show a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import beit
from beit.commands.assembly.saved_models import save_encoder
from beit.commands.assembly.tokenizers import load_tokenizer
from beit.commands.sharing.conversion import convert
from beit.errors import UserError
from beit.nn.classifier import Classifier
from beit.nn.encoder import Encoder
from beit.nn.segmenter import Segmenter
from beit.tokenizer.dvae import DiscreteVAE
from commands.fine_tuning_runs import CLASSIFY, SEGMENT, coloured, halves
from commands.recipe_runs import PRETRAIN
from interop.dalle_modules import save_models


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run that cuts pictures as no other does."""
    run = tmp_path_factory.mktemp("runs") / "cls"
    changes = {**CLASSIFY, "optim.steps": 2, "views.centre_share": 0.6}
    beit.classify("digits", str(photos), run, init="none", changes=changes)
    return run


Shown = Callable[[type[nn.Module], str], list[Tensor]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """The first argument of each call of a method."""

    def watch(kind: type[nn.Module], method: str) -> list[Tensor]:
        seen: list[Tensor] = []
        real = getattr(kind, method)

        def watched(self: nn.Module, images: Tensor, *more: Any, **named: Any) -> Any:
            seen.append(images)
            return real(self, images, *more, **named)

        monkeypatch.setattr(kind, method, watched)
        return seen

    return watch


def test_a_loaded_classifier_gives_what_predict_says(classifier: Path, photos: Path) -> None:
    model = beit.load(classifier)
    assert isinstance(model, Classifier)
    with torch.no_grad():
        found = model(beit.inputs(model, photos / "val")).softmax(-1)
    said = beit.predict(classifier, photos / "val", top=3, quiet=True)["predictions"]
    assert len(said) == len(found) == 15
    for row, told in zip(found, said, strict=True):
        of = {entry["label"]: entry["probability"] for entry in told["labels"]}
        assert [of[label] for label in model.labels] == pytest.approx(row.tolist(), abs=2e-6)


def test_evaluate_is_shown_the_same(classifier: Path, photos: Path, shown: Shown) -> None:
    expected = beit.inputs(classifier, photos / "val")
    seen = shown(Classifier, "forward")
    beit.evaluate(classifier, str(photos), quiet=True)
    assert torch.equal(torch.cat(seen), expected)


def test_a_foreign_classifier_keeps_its_crop(
    classifier: Path, photos: Path, tmp_path: Path
) -> None:
    convert(classifier, tmp_path / "out.safetensors", "timm")
    ours = beit.inputs(beit.load(classifier), photos / "val")
    assert torch.equal(beit.inputs(tmp_path / "out.safetensors", photos / "val"), ours)


def test_a_segmenter_is_shown_whole_pictures(tmp_path: Path, shown: Shown) -> None:
    data, run = halves(tmp_path / "halves"), tmp_path / "run"
    changes = {**SEGMENT, "optim.steps": 1}
    beit.segment("digits", str(data), run, init="none", changes=changes)
    pictures = data / "images" / "val"
    expected = beit.inputs(beit.load(run), pictures)
    seen = shown(Segmenter, "forward")
    beit.predict(run, pictures, out=tmp_path / "masks", dense={"mode": "whole"}, quiet=True)
    assert torch.equal(torch.cat(seen), expected) and expected.shape == (3, 3, 32, 32)


def test_a_pre_training_and_its_tokenizer_are_shown_the_largest_crop(
    photos: Path, tmp_path: Path, shown: Shown
) -> None:
    run = tmp_path / "run"
    beit.pretrain(beit.recipe("digits", PRETRAIN), str(photos), run)
    whole = beit.inputs(run, photos / "val")
    encoded = shown(Encoder, "forward")
    beit.evaluate(run, str(photos), quiet=True)
    assert torch.equal(torch.cat(encoded), whole)
    tokenizer = beit.load(run / "tokenizer")
    assert isinstance(tokenizer, DiscreteVAE)
    height, width = tokenizer.image_size
    wide = np.random.default_rng(0).integers(0, 256, (1, height, 3 * width, 3), np.uint8)
    middle = torch.from_numpy(wide[:, :, width : 2 * width]).permute(0, 3, 1, 2)
    assert torch.equal(beit.inputs(tokenizer, wide), middle / 255)


def test_pictures_come_in_many_forms(classifier: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
    files = [tmp_path / "b.png", tmp_path / "a.png"]
    for file, one in zip(files, pixels, strict=True):
        Image.fromarray(one).save(file)
    model = beit.load(classifier)
    assert isinstance(model, Classifier)
    expected = beit.inputs(model, pixels)
    opened = [Image.open(file) for file in files]
    for given in (files, opened, beit.pictures(pixels), list(pixels), [files[0], pixels[1]]):
        assert torch.equal(beit.inputs(model, given), expected)
    assert torch.equal(beit.inputs(model, str(tmp_path / "?.png")), expected.flip(0))
    for alone in (files[0], opened[0], pixels[0]):
        assert torch.equal(beit.inputs(model, alone), expected[:1])
    assert len(beit.inputs(model, [files[0], files[0]])) == 2
    assert beit.inputs(model, pixels[..., 0]).shape == expected.shape
    turned = Image.fromarray(pixels[0])
    exif = turned.getexif()
    exif[0x0112] = 3
    turned.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(
        beit.inputs(model, Image.open(tmp_path / "turned.png")),
        beit.inputs(model, tmp_path / "turned.png"),
    )
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert beit.inputs(model, clear).min() > 2  # white, as from a file


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([], "no picture was given: give a file, a folder"),
        (7, "a int is no picture: give a file"),
        (np.zeros((4, 4, 3)), "uint8, not float64"),
        ("nowhere.png", "nowhere.png names no picture"),
        (torch.zeros(3, 4, 4), "a Tensor is no picture"),
    ],
)
def test_what_is_no_picture_is_told(given: Any, complaint: str, classifier: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        beit.inputs(classifier, given)


def test_a_picture_that_cannot_be_read_is_named(classifier: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "cut.png") as opened:
        for given in (tmp_path / "cut.png", opened):
            with pytest.raises(UserError, match=r"cut.png cannot be read \(.*leave it out"):
                beit.inputs(classifier, given)


def test_a_model_of_ones_own_is_not_guessed_at() -> None:
    with pytest.raises(UserError, match="how pictures are cut for a Linear is not known"):
        model: Any = nn.Linear(2, 2)
        beit.inputs(model, np.zeros((1, 4, 4, 3), np.uint8))


@pytest.mark.parametrize("view", [7, {"centre_share": "0.9"}, {"centre_share": 2}], ids=str)
def test_an_impossible_crop_is_told(view: Any, classifier: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(classifier, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "view": view}))
    with pytest.raises(UserError, match=r"must .*\(0, 1\]"):
        beit.predict(copy, _picture(tmp_path))


def _picture(folder: Path) -> Path:
    Image.new("RGB", (20, 20)).save(folder / "a.png")
    return folder / "a.png"


def test_weight_files_are_loaded_like_folders(tmp_path: Path) -> None:
    own = beit.encoder("digits", image_size=16, patch_size=4, width=64, heads=1).eval()
    save_encoder(tmp_path / "own", own, {})
    convert(tmp_path / "own", tmp_path / "theirs.pth", to="reference")
    model = beit.load(tmp_path / "theirs.pth")
    assert isinstance(model, Encoder)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images).tokens, own(images).tokens)
    with pytest.raises(UserError, match="there is no .*give a finished run"):
        beit.load(tmp_path / "nothing.pth")


def test_dall_e_s_tokenizer_is_loaded_and_given_pictures(tmp_path: Path, photos: Path) -> None:
    save_models(tmp_path)
    model = beit.load(tmp_path / "encoder.pkl")
    assert isinstance(model, DiscreteVAE)
    images = beit.inputs(tmp_path / "encoder.pkl", photos)
    assert images.shape[-2:] == model.image_size and 0 <= images.min() < images.max() <= 1
    assert model.codes(images[:1]).shape == (1, *model.grid)


def test_weights_that_end_in_pkl_are_not_taken_for_dall_e_s(tmp_path: Path) -> None:
    save_encoder(tmp_path / "own", beit.encoder("digits", image_size=16, width=64, heads=1), {})
    convert(tmp_path / "own", tmp_path / "theirs.pth", to="reference")
    (tmp_path / "theirs.pth").rename(tmp_path / "theirs.pkl")
    assert isinstance(beit.load(tmp_path / "theirs.pkl"), Encoder)
    convert(tmp_path / "theirs.pkl", tmp_path / "again.safetensors", to="timm")
    assert isinstance(beit.load(tmp_path / "again.safetensors"), Encoder)
    with pytest.raises(UserError, match="theirs.pkl is no tokenizer"):
        load_tokenizer(tmp_path / "theirs.pkl")


def test_dall_e_s_file_is_known_under_any_name(tmp_path: Path) -> None:
    save_models(tmp_path)
    own, other = tmp_path / "encoder.pkl", tmp_path / "dalle_encoder.pkl"
    own.rename(other)
    assert isinstance(beit.load(other), DiscreteVAE)
    assert isinstance(load_tokenizer(other), DiscreteVAE)
    convert(other, tmp_path / "ours", to="beit")
    assert isinstance(beit.load(tmp_path / "ours"), DiscreteVAE)
    other.rename(tmp_path / "codes.pt")
    assert isinstance(beit.load(tmp_path / "codes.pt"), DiscreteVAE)


def test_what_cannot_be_looked_into_is_told_by_its_name(tmp_path: Path) -> None:
    log = tmp_path / "codes.pkl"
    log.write_text("--2021-06-20 10:00:00--  https://cdn.example.org/dall-e/encoder.pkl\n")
    uses: list[Callable[[Path], object]] = [beit.load, load_tokenizer]
    uses.append(lambda file: convert(file, tmp_path / "out", to="beit"))
    for use in uses:
        with pytest.raises(UserError, match="wget's log"):
            use(log)
        with pytest.raises(UserError, match=r"nothing\.pkl cannot be read \(No such file"):
            use(tmp_path / "nothing.pkl")
