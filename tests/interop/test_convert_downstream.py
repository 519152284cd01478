"""`beit convert` for what fine-tuning makes: classifiers with their labels, segmenters, probes."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import beit
from beit.cli import main
from beit.commands.assembly.saved_models import save_classifier, save_segmenter
from beit.commands.using.finished import read_finished
from beit.errors import UserError
from beit.interop.linear_probes import read_probes
from beit.interop.models import model_from_file
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import PYRAMID, DecoderConfig, default_pyramid
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead
from beit.nn.segmenter import Segmenter, build_segmenter
from interop.interop_models import HEADS, hub_model, randomise, timm_model

LABELS = ("tench", "cock", "gar", "pelican", "lynx")


def _encoder(positions: str = "per-layer", depth: int = 2) -> Encoder:
    config = EncoderConfig(
        image_size=(32, 32),
        patch_size=(8, 8),
        width=24,
        depth=depth,
        heads=HEADS,
        absolute_positions=positions == "absolute",
        relative_positions="none" if positions == "absolute" else positions,  # type: ignore[arg-type]
        layer_scale=0.1,
    )
    return Encoder(config)


def _classifier(folder: Path, positions: str = "per-layer", pool: str = "mean") -> Classifier:
    head = ClassifierHead(24, len(LABELS), "mean" if pool == "mean" else "special")
    model = Classifier(_encoder(positions), head, LABELS).eval()
    randomise(model)
    save_classifier(folder, model, {"recipe": "mine", "view": {"centre_share": 32 / 40}})
    return model


def _convert(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    status = main(["convert", *map(str, words), "--json"])
    told = capsys.readouterr()
    assert status == 0, told.err
    result: dict[str, Any] = json.loads(told.out.splitlines()[-1])
    return result


def _refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["convert", *map(str, words)]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()
    assert len(complaint) == 1, complaint
    return complaint[0]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("pool", ["mean", "special"])
@pytest.mark.parametrize("positions", ["absolute", "shared", "per-layer"])
@pytest.mark.parametrize("to", ["reference", "transformers", "timm"])
def test_a_classifier_there_and_back_is_bitwise_and_keeps_its_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, positions: str, pool: str
) -> None:
    model = _classifier(tmp_path / "ours", positions, pool)
    names = {"reference": "there.pth", "transformers": "there", "timm": "there.safetensors"}
    there = tmp_path / names[to]
    _convert(capsys, tmp_path / "ours", there, "--to", to)
    heads = ["--heads", HEADS] if to == "reference" and positions == "absolute" else []
    _convert(capsys, there, tmp_path / "back", "--to", "beit", *heads)
    assert read_finished(tmp_path / "back").views == read_finished(tmp_path / "ours").views
    back = beit.load(tmp_path / "back")
    assert isinstance(back, Classifier) and back.labels == LABELS
    assert back.head.pool == pool
    theirs, ours = dict(back.state_dict()), dict(model.state_dict())
    if to == "timm":  # has no mask embedding, and a table a layer
        for state in (theirs, ours):
            state.pop("encoder.embeddings.mask_embedding")
        if positions == "shared":
            table = ours.pop("encoder.shared_bias_table")
            ours |= {f"encoder.blocks.{number}.bias_table": table for number in range(2)}
    _same(theirs, ours)
    again = tmp_path / f"again{there.suffix}"
    _convert(capsys, tmp_path / "back", again, "--to", to)
    if to == "transformers":
        for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
            assert (there / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize("to", ["reference", "transformers", "timm"])
def test_a_classifier_that_says_no_crop_is_evaluated_alike_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    model = _classifier(tmp_path / "ours")
    save_classifier(tmp_path / "ours", model, {})
    names = {"reference": "there.pth", "transformers": "there", "timm": "there.safetensors"}
    _convert(capsys, tmp_path / "ours", tmp_path / names[to], "--to", to)
    views = [read_finished(tmp_path / name).views for name in ("ours", names[to])]
    shares = [view.centre_share for view in views]
    assert shares[0] == pytest.approx(shares[1], abs=0.015)  # transformers has whole pixels


@pytest.mark.parametrize(("side", "share"), [(32, 224 / 256), (384, 1.0)])
def test_where_nobody_says_the_crop_is_the_reference_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], side: int, share: float
) -> None:
    """Its evaluation keeps 224 of 256 pixels, and from 384 px up the whole side."""
    config = replace(_encoder("per-layer").config, image_size=(side, side), patch_size=(16, 16))
    model = Classifier(Encoder(config), ClassifierHead(24, len(LABELS)), LABELS).eval()
    save_classifier(tmp_path / "ours", model, {})
    _convert(capsys, tmp_path / "ours", tmp_path / "there.pth", "--to", "reference")
    _convert(capsys, tmp_path / "ours", tmp_path / "there", "--to", "transformers")
    for name in ("ours", "there.pth", "there"):
        found = read_finished(tmp_path / name).views.centre_share
        assert found == pytest.approx(share, abs=0.015), name  # transformers has whole pixels


def test_a_file_that_does_not_say_how_pictures_were_normalised_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _classifier(tmp_path / "ours")
    names = {"reference": "there.pth", "transformers": "there", "timm": "there.safetensors"}
    for to, name in names.items():  # ours say it
        _convert(capsys, tmp_path / "ours", tmp_path / name, "--to", to)
        read_finished(tmp_path / name)
        assert "nothing says" not in capsys.readouterr().err
    bare = tmp_path / "bare.pth"
    torch.save({"model": torch.load(tmp_path / "there.pth")["model"]}, bare)
    read_finished(bare)
    assert "nothing says what its pictures were normalised with" in capsys.readouterr().err
    said = _convert(capsys, bare, tmp_path / "half", "--to", "beit", "--normalisation", "half")
    assert not any("nothing says" in note for note in said["notes"])


def test_timm_prepares_pictures_as_we_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timm = pytest.importorskip("timm")
    _classifier(tmp_path / "ours")
    result = _convert(capsys, tmp_path / "ours", tmp_path / "there.safetensors", "--to", "timm")
    said = timm.data.resolve_data_config({}, model=timm.create_model(**result["timm"]))
    assert said["interpolation"] == "bicubic"
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    # 40 px, of which the middle 32 are kept: nothing is resized, and the pixels are known
    pixels = timm.data.create_transform(**said)(Image.fromarray(picture))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    crop = torch.from_numpy(picture[4:36, 4:36]).permute(2, 0, 1) / 255
    own = (crop - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(pixels, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pool", ["mean", "special"])
def test_transformers_pipeline_says_what_we_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pool: str
) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    model = _classifier(tmp_path / "ours", pool=pool)
    _convert(capsys, tmp_path / "ours", tmp_path / "hub", "--to", "transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classify = transformers.pipeline("image-classification", model=str(tmp_path / "hub"))
        assert type(classify.model).__name__ == "BeitForImageClassification"
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hub")
        picture = Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        )
        said = {entry["label"]: entry["score"] for entry in classify(picture, top_k=5)}
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixels).softmax(-1)[0]
    assert set(said) == set(LABELS)
    for label, probability in zip(LABELS, expected.tolist(), strict=True):
        assert abs(said[label] - probability) < 1e-5
    # 40 px, of which the middle 32 are kept: nothing is resized, and the pixels are known
    crop = torch.from_numpy(np.array(picture)[4:36, 4:36]).permute(2, 0, 1) / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    own = (crop - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(pixels[0], own, atol=1e-5, rtol=0)


def _theirs(folder: Path, **processor: Any) -> Any:
    """A transformers classifier with its image processor, as on the hub."""
    theirs = hub_model("BeitForImageClassification", "per-layer", True, use_mean_pooling=True)
    theirs.config.id2label = dict(enumerate(LABELS))
    theirs.config.label2id = {label: number for number, label in enumerate(LABELS)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(folder)
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return theirs


def test_a_published_classifier_is_right_with_our_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Microsoft published was fed with a mean and a deviation of 0.5."""
    theirs = _theirs(
        tmp_path / "theirs",
        do_resize=True,
        size={"shortest_edge": 256},
        do_center_crop=True,
        crop_size={"height": 224, "width": 224},
    )
    result = _convert(capsys, tmp_path / "theirs", tmp_path / "ours", "--to", "beit")
    assert any("the patch projection now takes ImageNet's" in note for note in result["notes"])
    facts = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert facts["view"] == {"centre_share": 0.875}
    ours = beit.load(tmp_path / "ours")
    assert isinstance(ours, Classifier) and ours.labels == LABELS
    pixels = torch.rand(2, 3, 32, 32)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        logits = ours((pixels - mean[:, None, None]) / deviation[:, None, None])
        torch.testing.assert_close(logits, theirs((pixels - 0.5) / 0.5).logits, atol=1e-5, rtol=0)
    _convert(
        *(capsys, tmp_path / "theirs", tmp_path / "as it is", "--to", "beit"),
        *("--normalisation", "imagenet"),
    )
    kept = beit.load(tmp_path / "as it is")
    assert isinstance(kept, Classifier)
    theirs_own = model_from_file(tmp_path / "theirs").encoder.state_dict()
    _same(dict(kept.encoder.state_dict()), dict(theirs_own))


@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": [0.5, 0.5]},
        {"image_std": [0.5, 0.5, 0]},
        {"image_std": "grey"},
        {"do_center_crop": True, "crop_size": "large", "size": 3},
        {"do_center_crop": True, "crop_size": 3, "size": 0},
        {"do_center_crop": True},
    ],
    ids=str,
)
def test_impossible_image_processors_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    _theirs(tmp_path / "theirs", **change)
    capsys.readouterr()
    _refused(capsys, tmp_path / "theirs", tmp_path / "ours", "--to", "beit")
    assert not (tmp_path / "ours").exists()


def test_a_fine_tuned_reference_checkpoint_becomes_a_classifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """timm kept the reference's names, so its model stands for the reference's here."""
    theirs = timm_model("per-layer", True, (32, 32))
    saved = {"model": theirs.state_dict(), "epoch": 29, "model_ema": theirs.state_dict()}
    torch.save(saved, tmp_path / "beit_base_patch16_224_pt22k_ft1k.pth")
    words = (tmp_path / "beit_base_patch16_224_pt22k_ft1k.pth", tmp_path / "ours", "--to", "beit")
    result = _convert(capsys, *words)
    ours = beit.load(tmp_path / "ours")
    assert isinstance(ours, Classifier) and ours.labels == () and result["labels"] == 0
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_names_that_are_too_few_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = timm_model("per-layer", True, (32, 32))
    torch.save({"model": theirs.state_dict(), "labels": ["one", "two"]}, tmp_path / "theirs.pth")
    result = _convert(capsys, tmp_path / "theirs.pth", tmp_path / "ours", "--to", "beit")
    assert "left out 2 names for 5 classes" in result["notes"]


HEADERS = [
    {"timm": text}
    for text in (
        *("nonsense", "{}", "[1]"),
        '{"img_size": [32, 32], "num_heads": 4, "pretrained_cfg_overlay": {"crop_pct": "all"}}',
        '{"img_size": [32, 32], "num_heads": 4, "pretrained_cfg_overlay": ["crop_pct"]}',
    )
]


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_impossible_headers_are_refused(tmp_path: Path, header: dict[str, str]) -> None:
    theirs = timm_model("per-layer", True, (32, 32))
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors", header)
    with pytest.raises(UserError, match="impossible header"):
        model_from_file(tmp_path / "theirs.safetensors")


@pytest.mark.parametrize("to", ["reference", "transformers"])
def test_a_segmenter_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    pyramid = PYRAMID if to == "transformers" else default_pyramid((8, 8))
    config = DecoderConfig("upernet", 5, 24, layers=(0, 1, 2, 3), pyramid=pyramid)
    model = build_segmenter(_encoder(depth=4), config, LABELS).eval()
    randomise(model)
    model.encoder.embeddings.mask_embedding.data.zero_()  # the reference has none
    save_segmenter(tmp_path / "ours", model, {"view": {"short_side": 40}, "palette": [[0, 0, 1]]})
    _convert(capsys, tmp_path / "ours", tmp_path / "copy", "--to", "beit")
    copied = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert copied["view"] == {"short_side": 40} and copied["palette"] == [[0, 0, 1]]
    there = tmp_path / ("there.pth" if to == "reference" else "there")
    _convert(capsys, tmp_path / "ours", there, "--to", to)
    _convert(capsys, there, tmp_path / "back", "--to", "beit")
    back = beit.load(tmp_path / "back")
    assert isinstance(back, Segmenter) and back.labels == LABELS
    _same(dict(back.state_dict()), dict(model.state_dict()))
    assert "timm has no segmenters" in _refused(
        capsys, tmp_path / "ours", tmp_path / "no.safetensors", "--to", "timm"
    )


def _probes(prefix: str = "") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(2):
        state[f"{prefix}linear.{layer}.weight"] = torch.randn(5, 48, generator=generator)
        state[f"{prefix}linear.{layer}.bias"] = torch.randn(5, generator=generator)
    return {"epoch": 100, "state_dict": state, "optimizer": {}, "scheduler": {}, "best_acc": 61.5}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_reference_s_linear_probes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    saved = _probes(prefix)
    torch.save(saved, tmp_path / "checkpoint.pth.tar")
    probes = read_probes(tmp_path / "checkpoint.pth.tar")
    encoder, images = _encoder().eval(), torch.randn(3, 3, 32, 32)
    randomise(encoder)
    with torch.no_grad():
        logits = probes.logits(encoder, images)
        for layer, tokens in enumerate(encoder(images, layers=[0, 1]).layers):
            special, mean = tokens[:, 0], tokens[:, 1:].mean(1)  # as the reference has it
            weight, bias = (
                saved["state_dict"][f"{prefix}linear.{layer}.{part}"] for part in ("weight", "bias")
            )
            expected = torch.cat((special, mean), dim=-1) @ weight.T + bias
            torch.testing.assert_close(logits[layer], expected, atol=1e-5, rtol=0)
    _convert(capsys, tmp_path / "checkpoint.pth.tar", tmp_path / "ours", "--to", "beit")
    assert load_file(tmp_path / "ours" / "model.safetensors")
    _convert(capsys, tmp_path / "ours", tmp_path / "again.pth", "--to", "reference")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["state_dict"]
    _same({f"{prefix}{name}": value for name, value in again.items()}, saved["state_dict"])
    assert "without an encoder" in _refused(
        capsys, tmp_path / "ours", tmp_path / "no.onnx", "--to", "onnx"
    )


def test_probes_are_no_model_and_fit_one_encoder(tmp_path: Path) -> None:
    torch.save(_probes(), tmp_path / "probes.pth")
    with pytest.raises(UserError, match="linear probes.*no encoder"):
        model_from_file(tmp_path / "probes.pth")
    with pytest.raises(UserError, match="2 layers of width 24, and the encoder has 3"):
        read_probes(tmp_path / "probes.pth").logits(_encoder(depth=3), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"linear.1.weight": None}, "no linear.1|no weights"),
        ({"linear.0.bias": None}, "no linear.0.bias"),
        ({"linear.1.weight": torch.ones(5, 40)}, "impossible shapes"),
        ({"linear.1.bias": torch.ones(4)}, "impossible shapes"),
        ({"linear.9.bias": torch.ones(5)}, "does not hold all"),
        ({"cls_token": torch.ones(5)}, "unexpected cls_token"),
    ],
    ids=str,
)
def test_probes_that_are_not_whole_are_refused(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    state = _probes()["state_dict"] | change
    kept = {name: value for name, value in state.items() if value is not None}
    torch.save({"state_dict": kept}, tmp_path / "probes.pth")
    with pytest.raises(UserError, match=complaint):
        read_probes(tmp_path / "probes.pth")
