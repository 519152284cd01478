"""`beit convert`: there and back bit by bit, and what does not fit is refused by name."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import beit
from beit.cli import main
from beit.commands.assembly.saved_models import save_masked_image_model
from beit.interop.models import model_from_file
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.nn.heads import MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.tokenizer.dvae import DiscreteVAE, map_pixels
from interop.dalle_modules import save_models
from interop.interop_models import every_patch, hub_model, randomise, timm_model, vit_model

SIZE = ["--image-size", "32", "32", "--heads", "4"]


def _ours(folder: Path, positions: str = "shared", scaled: bool = True) -> MaskedImageModel:
    config = EncoderConfig(
        image_size=(32, 32),
        patch_size=(8, 8),
        width=24,
        depth=2,
        heads=4,
        absolute_positions=positions == "absolute",
        relative_positions="none" if positions == "absolute" else positions,  # type: ignore[arg-type]
        layer_scale=0.1 if scaled else None,
    )
    model = MaskedImageModel(Encoder(config), MaskedTokenHead(24, 13)).eval()
    randomise(model)
    save_masked_image_model(folder, model, {})
    return model


def _convert(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    assert main(["convert", *map(str, words), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def _refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["convert", *map(str, words)]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()
    assert len(complaint) == 1, complaint
    return complaint[0]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "LayerScale"])
@pytest.mark.parametrize("positions", ["absolute", "shared", "per-layer"])
@pytest.mark.parametrize("to", ["reference", "transformers"])
def test_there_and_back_is_bitwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, positions: str, scaled: bool
) -> None:
    model = _ours(tmp_path / "ours", positions, scaled)
    there = tmp_path / ("there.pth" if to == "reference" else "there")
    _convert(capsys, tmp_path / "ours", there, "--to", to)
    _convert(capsys, there, tmp_path / "back", "--to", "beit", *SIZE)
    back = beit.load(tmp_path / "back")
    assert isinstance(back, MaskedImageModel)
    _same(dict(back.state_dict()), dict(model.state_dict()))
    again = tmp_path / ("again.pth" if to == "reference" else "again")
    _convert(capsys, tmp_path / "back", again, "--to", to)
    files = [""] if to == "reference" else ["model.safetensors", "config.json"]
    for name in files:  # bit for bit the same files, too
        first, second = (path / name if name else path for path in (there, again))
        if to == "reference":
            _same(*(torch.load(path, weights_only=True)["model"] for path in (first, second)))
        else:
            assert first.read_bytes() == second.read_bytes()


def test_the_reference_s_file_has_the_reference_s_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _ours(tmp_path / "ours")
    _convert(capsys, tmp_path / "ours", tmp_path / "there.pth", "--to", "reference")
    names = set(torch.load(tmp_path / "there.pth", weights_only=True)["model"])
    assert names >= {
        *("cls_token", "mask_token", "patch_embed.proj.weight", "blocks.1.attn.q_bias"),
        *("rel_pos_bias.relative_position_bias_table", "rel_pos_bias.relative_position_index"),
        *("blocks.0.gamma_1", "norm.weight", "lm_head.bias"),
    }


@pytest.mark.parametrize("positions", ["absolute", "shared", "per-layer"])
def test_transformers_loads_what_we_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], positions: str
) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    model = _ours(tmp_path / "ours", positions)
    _convert(capsys, tmp_path / "ours", tmp_path / "there", "--to", "transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, told = transformers.BeitForMaskedImageModeling.from_pretrained(
            tmp_path / "there", output_loading_info=True
        )
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "there")
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert dict(processor.size) == {"height": 32, "width": 32}
    images, grid = torch.randn(2, 3, 32, 32), torch.rand(2, 4, 4) > 0.5

    with torch.no_grad():
        expected = theirs(images, bool_masked_pos=grid.flatten(1)).logits
        logits = model(images, every_patch(grid))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["BeitForMaskedImageModeling", "BeitModel"])
def test_we_load_what_transformers_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    theirs = hub_model(kind, "shared", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path / "theirs")
    result = _convert(capsys, tmp_path / "theirs", tmp_path / "ours", "--to", "beit")
    model = beit.load(tmp_path / "ours")
    if isinstance(model, Encoder):
        assert any("last LayerNorm" in note for note in result["notes"])
        left = model_from_file(tmp_path / "theirs").left_out
        assert left and {*left} <= load_file(tmp_path / "theirs" / "model.safetensors").keys()
    _convert(capsys, tmp_path / "ours", tmp_path / "again", "--to", "transformers")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    _same(*({n: v for n, v in side.items() if "pooler" not in n} for side in (before, after)))
    assert before.keys() == after.keys()


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "LayerScale"])
@pytest.mark.parametrize("positions", ["absolute", "shared", "per-layer"])
def test_timm_loads_strictly_what_we_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], positions: str, scaled: bool
) -> None:
    timm = pytest.importorskip("timm")
    model = _ours(tmp_path / "ours", positions, scaled)
    file = tmp_path / "there.safetensors"
    result = _convert(capsys, tmp_path / "ours", file, "--to", "timm")
    assert any("shared" in note for note in result["notes"]) is (positions == "shared")
    theirs = timm.create_model(**result["timm"]).eval()
    theirs.load_state_dict(load_file(file), strict=True)
    again = timm.create_model(**result["timm"], checkpoint_path=str(file)).eval()
    _same(dict(theirs.state_dict()), dict(again.state_dict()))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.head.norm(model.encoder(images).tokens)
        torch.testing.assert_close(theirs.forward_features(images), expected, atol=1e-5, rtol=0)


def test_a_classifier_goes_from_timm_to_transformers_with_its_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    theirs = timm_model("per-layer", True, (32, 32))
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    _convert(capsys, tmp_path / "theirs.safetensors", tmp_path / "hub", "--to", "transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub = transformers.BeitForImageClassification.from_pretrained(tmp_path / "hub")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(hub(images).logits, theirs(images), atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["id2label"] = {str(number): f"bird {number}" for number in range(5)}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    _convert(capsys, tmp_path / "hub", tmp_path / "again", "--to", "transformers")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["id2label"] == config["id2label"]
    _convert(capsys, tmp_path / "hub", tmp_path / "again.safetensors", "--to", "timm")
    _same(load_file(tmp_path / "again.safetensors"), dict(theirs.state_dict()))
    _convert(capsys, tmp_path / "hub", tmp_path / "whole", "--to", "beit")
    whole = beit.load(tmp_path / "whole")
    assert isinstance(whole, Classifier)
    assert whole.labels == tuple(f"bird {number}" for number in range(5))
    with torch.no_grad():
        torch.testing.assert_close(whole(images), theirs(images), atol=1e-5, rtol=0)
    _convert(capsys, tmp_path / "hub", tmp_path / "ours", "--to", "beit", "--encoder-only")
    assert isinstance(beit.load(tmp_path / "ours"), Encoder)


def _wrapped(name: str) -> dict[str, Any]:
    """A plain ViT's weights as self-supervised projects save them."""
    body = vit_model(num_classes=0).state_dict()
    head = {"head.0.weight": torch.ones(2, 24)}
    if name == "mae":
        decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 24)}
        return {"model": {**body, **decoder}}
    if name == "dino":
        inner = {f"backbone.{key}": value for key, value in body.items()}
        return {"student": {}, "teacher": {**inner, "head.mlp.0.weight": torch.ones(2, 2)}}
    if name == "moco":
        base = {f"module.base_encoder.{key}": value for key, value in (body | head).items()}
        other = {f"module.momentum_encoder.{key}": value + 1 for key, value in body.items()}
        return {"state_dict": {**base, **other, "module.predictor.0.weight": torch.ones(2, 2)}}
    return {"model": body}


@pytest.mark.parametrize("name", ["deit", "mae", "dino", "moco"])
def test_other_people_s_backbones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    torch.save(_wrapped(name), tmp_path / "theirs.pth")
    result = _convert(
        capsys, tmp_path / "theirs.pth", tmp_path / "ours", "--to", "beit", "--heads", 4
    )
    assert any("bias on the keys" in note for note in result["notes"])
    assert any("not the encoder" in note for note in result["notes"]) is (name != "deit")
    encoder = beit.load(tmp_path / "ours")
    assert isinstance(encoder, Encoder)
    images = torch.randn(2, 3, 32, 32)
    theirs = vit_model(num_classes=0)
    with torch.no_grad():
        tokens = theirs.norm(encoder(images).tokens)
        torch.testing.assert_close(tokens, theirs.forward_features(images), atol=1e-5, rtol=0)


def test_containers_and_averages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    _ours(tmp_path / "ours")
    _convert(capsys, tmp_path / "ours", tmp_path / "plain.pth", "--to", "reference")
    weights = torch.load(tmp_path / "plain.pth", weights_only=True)["model"]
    average = {
        name: value + 1 if value.is_floating_point() else value for name, value in weights.items()
    }
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    saved = {"model": wrapped, "model_ema": average, "epoch": 3, "args": argparse.Namespace(lr=1)}
    torch.save(saved, tmp_path / "whole.pth")
    torch.save(weights, tmp_path / "bare.pth")
    for name in ("whole.pth", "bare.pth"):
        _convert(capsys, tmp_path / name, tmp_path / f"{name}.ours", "--to", "beit")
        _same(*(load_file(tmp_path / x / "model.safetensors") for x in (f"{name}.ours", "ours")))
    _convert(capsys, tmp_path / "whole.pth", tmp_path / "average", "--to", "beit", "--ema")
    plain = load_file(tmp_path / "ours" / "model.safetensors")
    _same(
        load_file(tmp_path / "average" / "model.safetensors"),
        {name: value + 1 for name, value in plain.items()},
    )
    assert "moving average" in _refused(
        capsys, tmp_path / "bare.pth", tmp_path / "no", "--to", "beit", "--ema"
    )


def _changed(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    index = "rel_pos_bias.relative_position_index"
    changes: dict[str, dict[str, Tensor | None]] = {
        "missing": {"blocks.1.norm2.bias": None},
        "surplus": {"blocks.1.attn.rope": torch.ones(3)},
        "shape": {"blocks.1.mlp.fc2.weight": torch.ones(24, 95)},
        "whole block": {name: None for name in weights if name.startswith("blocks.0")},
        "positions": {"rel_pos_bias.relative_position_bias_table": torch.ones(53, 4)},
        "index": {index: weights[index] + 1},
        "integers": {"norm.bias": torch.ones(24, dtype=torch.int64)},
        "nothing": dict.fromkeys(weights),
        "no patches": {"patch_embed.proj.weight": None},
        "a far block": {"blocks.9999.norm1.bias": torch.ones(24)},
    }
    changed = {**weights, **changes[name]}
    return {key: value for key, value in changed.items() if value is not None}


WORDS = {
    "missing": "no blocks.1.norm2.bias",
    "surplus": "unexpected blocks.1.attn.rope",
    "shape": r"blocks.1.mlp.fc2.weight has shape (24, 95) instead of (24, 96)",
    "whole block": "no Transformer block",
    "positions": "its positions differ",
    "index": "numbers the pairs of patches otherwise",
    "integers": "norm.bias holds no floating-point numbers",
    "nothing": "in no layout known here",
    "no patches": "no 4-D patch projection",
    "a far block": "numbers 10000 blocks",
}


@pytest.mark.parametrize("name", WORDS)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    _ours(tmp_path / "ours")
    _convert(capsys, tmp_path / "ours", tmp_path / "good.pth", "--to", "reference")
    weights = torch.load(tmp_path / "good.pth", weights_only=True)["model"]
    torch.save(_changed(name, weights), tmp_path / "bad.pth")
    complaint = _refused(capsys, tmp_path / "bad.pth", tmp_path / "out", "--to", "beit")
    assert WORDS[name] in complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [("--image-size", 64, 64), ("--heads", 2), ("--ema",), ("--normalisation", "half")]
)
def test_a_model_of_ours_is_not_told_what_it_says_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[Any, ...]
) -> None:
    _ours(tmp_path / "ours")
    target = tmp_path / "there.pth"
    assert str(tmp_path / "ours") in _refused(
        capsys, tmp_path / "ours", target, "--to", "reference", *words
    )
    assert not target.exists()
    known = *SIZE, "--normalisation", "imagenet"
    _convert(capsys, tmp_path / "ours", target, "--to", "reference", *known)


def test_dalle_s_tokenizer_is_converted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, _ = save_models(tmp_path)
    _convert(capsys, tmp_path / "encoder.pkl", tmp_path / "ours", "--to", "beit")
    model = beit.load(tmp_path / "ours")
    assert isinstance(model, DiscreteVAE)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.codes(images), encoder(map_pixels(images)).argmax(1))
    assert "tokenizer" in _refused(
        capsys, tmp_path / "encoder.pkl", tmp_path / "out.pth", "--to", "reference"
    )


def test_targets_in_the_way_and_rectangles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _ours(tmp_path / "ours")
    assert "there already" in _refused(capsys, tmp_path / "ours", tmp_path / "ours", "--to", "beit")
    assert ".pth" in _refused(capsys, tmp_path / "ours", tmp_path / "file", "--to", "reference")
    theirs = timm_model("absolute", False, (16, 40))
    save_file(theirs.state_dict(), tmp_path / "wide.safetensors")
    words = (tmp_path / "wide.safetensors", tmp_path / "hub", "--to", "transformers")
    assert "--image-size" in _refused(capsys, *words, "--heads", 4)
    assert "square" in _refused(capsys, *words, "--heads", 4, "--image-size", 16, 40)
    assert "--heads" in _refused(capsys, *words, "--image-size", 16, 40)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 0},
        {"image_size": 1 << 40},
        {"image_size": [32]},
        {"image_size": "large"},
        {"image_size": None},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"num_attention_heads": -4},
        {"layer_scale_init_value": []},
        {"drop_path_rate": 7},
        {"hidden_act": "relu"},
        {"model_type": "vit"},
        {"architectures": ["BeitForImageClassification"], "id2label": {"a": 1}},
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    _ours(tmp_path / "ours")
    _convert(capsys, tmp_path / "ours", tmp_path / "hub", "--to", "transformers")
    config = json.loads((tmp_path / "hub" / "config.json").read_text()) | change
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    _refused(capsys, tmp_path / "hub", tmp_path / "out", "--to", "beit")
    assert not (tmp_path / "out").exists()


def test_our_own_formats_hold_no_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _ours(tmp_path / "ours")
    save_models(tmp_path / "theirs")
    _convert(capsys, tmp_path / "ours", tmp_path / "bare", "--to", "beit", "--encoder-only")
    _convert(capsys, tmp_path / "ours", tmp_path / "hub", "--to", "transformers")
    _convert(capsys, tmp_path / "ours", tmp_path / "timm" / "a.safetensors", "--to", "timm")
    _convert(capsys, tmp_path / "theirs" / "encoder.pkl", tmp_path / "tokenizer", "--to", "beit")
    folders = ("ours", "bare", "hub", "timm", "tokenizer")
    files = [file for folder in folders for file in (tmp_path / folder).iterdir()]
    assert len(files) >= 10
    for file in files:
        if file.suffix == ".safetensors":
            assert load_file(file)
        else:
            json.loads(file.read_text(encoding="utf-8"))
