"""Other people's backbones: the same features as timm's, and a reason where they cannot be ours."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from beit.commands.assembly.initial import Initial, Start
from beit.errors import UserError
from beit.interop import hub, timm_models
from beit.interop.foreign import read_foreign
from beit.interop.models import ForeignModel
from beit.interop.normalisation import HALF, IMAGENET, Normalisation, fold, normalisation_from
from beit.interop.timm_models import from_module
from beit.nn.heads import ClassifierHead
from interop.backbone_files import LAYOUTS, prefixed, saved
from interop.interop_models import HEADS, randomise, timm_model, vit_model

SIZE = (32, 32)


def _same_features(own: ForeignModel, theirs: Any, size: tuple[int, int] = SIZE) -> None:
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        tokens = theirs.norm(own.encoder(images).tokens)
        expected = theirs.forward_features(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


def _everything_is_taken_or_named(own: ForeignModel, file: dict[str, Any], body: list[str]) -> None:
    """What is left out are names of the file; the others are the body without its last norm."""
    whole = {name for name in own.left_out if not name.endswith("(its keys)")}
    assert len({*own.left_out}) == len(own.left_out)
    parts = [part for part in file.values() if isinstance(part, dict)] or [file]
    held = next(part.keys() for part in parts if part.keys() >= whole)
    taken = [name for name in held if name not in whole]
    assert len(taken) == len(body) - len(("norm.weight", "norm.bias"))
    assert all(name.endswith(tuple(body)) for name in taken)
    keys = [name.removesuffix(" (its keys)") for name in own.left_out if name not in whole]
    assert {*keys} == {name for name in taken if name.endswith("qkv.bias")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_timm_s_features(tmp_path: Path, name: str) -> None:
    theirs = vit_model(num_classes=0)
    torch.save(saved(name, theirs.state_dict()), tmp_path / "theirs.pth")
    own = read_foreign(tmp_path / "theirs.pth", heads=HEADS)
    assert own.head is None and own.layout == "vit"
    assert any("bias on the keys" in note for note in own.notes)
    left = any("left out what is not the encoder" in note for note in own.notes)
    assert left is (name.startswith(("dino,", "moco")) or name == "mae with its decoder")
    _same_features(own, theirs)
    _everything_is_taken_or_named(own, saved(name, theirs.state_dict()), [*theirs.state_dict()])


def test_safetensors_and_a_classifier(tmp_path: Path) -> None:
    theirs = vit_model(global_pool="avg")
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    own = read_foreign(tmp_path / "theirs.safetensors", heads=HEADS)
    assert isinstance(own.head, ClassifierHead)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits, expected = own.head(own.encoder(images).tokens), theirs(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (16, 40)], ids=["square", "rectangle"])
def test_what_is_zero_in_ours_is_filled_in(tmp_path: Path, size: tuple[int, int]) -> None:
    """DeiT III has no position of the special token, and some models no bias on their queries."""
    theirs = vit_model(
        num_classes=0, no_embed_class=True, init_values=0.1, qkv_bias=False, img_size=size
    )
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    given = None if size == (32, 32) else size
    own = read_foreign(tmp_path / "theirs.safetensors", heads=HEADS, image_size=given)
    assert any("no position" in note for note in own.notes)
    assert any("no bias" in note for note in own.notes)
    _same_features(own, theirs, size)


def test_moco_s_small_model_has_narrow_heads(tmp_path: Path) -> None:
    theirs = vit_model(num_classes=0, embed_dim=384, num_heads=12, depth=1)
    wrapped = {"state_dict": prefixed("module.base_encoder.", theirs.state_dict())}
    torch.save(wrapped, tmp_path / "vit-s-300ep.pth.tar")
    own = read_foreign(tmp_path / "vit-s-300ep.pth.tar")
    assert own.encoder.config.heads == 12
    assert any("12 attention heads" in note for note in own.notes)
    _same_features(own, theirs)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "distillation token": ("deit_tiny_distilled_patch16_224", {}),
    "register tokens": ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    "as CLIP's do": ("vit_tiny_patch16_224", {"pre_norm": True}),
    "no special token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "pools by attention": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "map"}),
    "queries and keys": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "inside attention": ("vit_tiny_patch16_224", {"scale_attn_norm": True}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_encoder_of_ours_is_refused_with_the_reason(tmp_path: Path, reason: str) -> None:
    name, more = REFUSED[reason]
    theirs = vit_model(name, **more)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match=reason):
        read_foreign(tmp_path / "theirs.safetensors", heads=HEADS)


PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "it drops patches": ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5}),
    "use SiLU": ("vit_tiny_patch16_224", {"act_layer": "silu"}),
    "VisionTransformerDistilled": ("deit_tiny_distilled_patch16_224", {}),
    "eps 1e-06": ("vit_tiny_patch16_224", {"norm_layer": partial(nn.LayerNorm, eps=1e-5)}),
}


@pytest.mark.parametrize("reason", PARTS)
def test_a_model_s_parts_tell_more_than_its_names(reason: str) -> None:
    name, more = PARTS[reason]
    with pytest.raises(UserError, match=reason):
        from_module(vit_model(name, **more), "it")


def test_a_model_that_computes_otherwise_is_refused() -> None:
    theirs = vit_model()
    theirs.blocks[1].norm2.eps = 0.5
    with pytest.raises(UserError, match="differ by"):
        from_module(theirs, "it")


def test_a_head_that_pools_otherwise_is_left_out() -> None:
    own = from_module(vit_model(global_pool="avg", fc_norm=False), "it")
    assert own.head is None and "left out its classifier" in own.notes[-1]


def _by_name(
    monkeypatch: pytest.MonkeyPatch, theirs: Any, fed: Normalisation = IMAGENET
) -> ForeignModel:
    """What `timm:NAME` gives when timm has these weights under the name."""
    theirs.pretrained_cfg = {"mean": fed.mean, "std": fed.deviation}
    monkeypatch.setattr(timm_models, "_created", lambda name, pretrained: theirs)
    monkeypatch.setattr(hub, "_answers", lambda address: True)
    return read_foreign("timm:vit_tiny_patch16_224")


@pytest.mark.parametrize("theirs", ["vit", "beit", "beitv2"])
def test_models_by_name(monkeypatch: pytest.MonkeyPatch, theirs: str) -> None:
    names = {"beit": "beit_base_patch16_224", "beitv2": "beitv2_base_patch16_224"}
    model = (
        vit_model() if theirs == "vit" else timm_model("per-layer", True, SIZE, name=names[theirs])
    )
    own = _by_name(monkeypatch, model)
    assert isinstance(own.head, ClassifierHead)
    _same_features(own, model)


def test_other_colours_are_taken_care_of(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = vit_model()
    own = _by_name(monkeypatch, theirs, HALF)
    assert "ImageNet's" in own.notes[-1] and own.prepared.fed == IMAGENET
    pixels = torch.rand(2, 3, 32, 32)

    def normalised(fed: Normalisation) -> Tensor:
        mean, deviation = (torch.tensor(side)[:, None, None] for side in fed)
        return (pixels - mean) / deviation

    with torch.no_grad():
        tokens = theirs.norm(own.encoder(normalised(IMAGENET)).tokens)
        expected = theirs.forward_features(normalised(HALF))
        other = theirs.forward_features(normalised(IMAGENET))
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)
    assert (tokens - other).abs().max() > 0.05


def test_imagenet_s_colours_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    own = _by_name(monkeypatch, vit_model())
    before = own.encoder.embeddings.projection.weight.clone()
    assert fold(own.encoder, IMAGENET) is None
    assert torch.equal(own.encoder.embeddings.projection.weight, before)


@pytest.mark.parametrize("deviation", [(0.5, 0.5, 0.0), (0.5,), "abc", None, (1, 2, float("nan"))])
def test_impossible_colours_are_refused(deviation: Any) -> None:
    with pytest.raises(UserError, match="impossible mean or deviation"):
        normalisation_from((0.5, 0.5, 0.5), deviation, "it")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("vit_tinny_patch16_224", "did you mean timm:vit_tiny_patch16_224?"),
        ("", "no model"),
        ("hf-hub:someone/model", "no model"),
        ("vit_tiny_patch16_224.nonsense", "it has vit_tiny_patch16_224.augreg"),
        ("vit_giant_patch14_224", "no pre-trained weights"),
        ("resnet18", "it is a ResNet"),
        ("vit_base_patch16_clip_224", "as CLIP's do"),
    ],
)
def test_names_that_cannot_be(name: str, complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        read_foreign(f"timm:{name}")
    assert complaint in str(refused.value)


def test_without_a_network_one_sentence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "_answers", lambda address: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"not in the cache.*without a network give a folder"):
        read_foreign("timm:vit_tiny_patch16_224")
    assert constants.HF_HUB_OFFLINE is False


def _page(folder: Path, **more: Any) -> Any:
    """A folder as timm's pages on the hub are."""
    folder.mkdir()
    theirs = vit_model(num_heads=3)
    save_file(theirs.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "label_names": ["a", "b", "c", "d", "e"],
        "model_args": {"img_size": 32},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32]},
    }
    (folder / "config.json").write_text(json.dumps(config | more))
    return theirs


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_page_of_timm_s_says_what_shapes_do_not(tmp_path: Path, given: str) -> None:
    theirs = _page(tmp_path / "page")
    path = tmp_path / "page" / ("" if given == "folder" else "model.safetensors")
    own = read_foreign(path)
    assert own.encoder.config.heads == 3 and own.labels == ("a", "b", "c", "d", "e")
    images = torch.randn(1, 3, 32, 32)
    ours, half = (torch.tensor(side)[:, None, None] for side in (IMAGENET.mean, HALF.mean))
    scale = torch.tensor(IMAGENET.deviation)[:, None, None]
    assert isinstance(own.head, ClassifierHead)
    with torch.no_grad():
        logits = own.head(own.encoder(images).tokens)
        expected = theirs((images * scale + ours - half) / 0.5)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "vit_secret"},
        {"architecture": "resnet18"},
        {"architecture": "vit_base_patch16_clip_224"},
        {"model_args": {"act_layer": "silu"}},
        {"model_args": {"pretrained": True}},
        {"model_args": {"img_size": "large"}},
        {"model_args": 7},
        {"pretrained_cfg": {"mean": "grey"}},
        {"pretrained_cfg": []},
        {"model_args": {"num_heads": 10**9}},
    ],
    ids=str,
)
def test_impossible_pages_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    _page(tmp_path / "page", **change)
    if change == {"pretrained_cfg": []}:  # says nothing
        read_foreign(tmp_path / "page")
        return
    with pytest.raises(UserError):
        read_foreign(tmp_path / "page")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["vit_base_patch16_224", "deit3_base_patch16_224", "beitv2_base_patch16_224"],
)
def test_models_of_full_size(name: str) -> None:
    """At 224 px: features within 1e-5, gradients of a loss on them within 1e-4."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name).eval()
    randomise(theirs)
    own = from_module(theirs, name)
    images = torch.randn(1, 3, 224, 224)
    tokens = theirs.norm(own.encoder(images).tokens)
    expected = theirs.forward_features(images)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)
    weights = torch.linspace(-1, 1, tokens.numel()).view_as(tokens)
    parts = own.encoder.embeddings.projection.bias, theirs.patch_embed.proj.bias
    (ours,) = torch.autograd.grad((weights * tokens).sum(), parts[0])
    (other,) = torch.autograd.grad((weights * expected).sum(), parts[1])
    assert (ours - other).norm() < 1e-4 * other.norm()


def test_a_run_tells_what_it_left_of_a_file(tmp_path: Path) -> None:
    theirs = vit_model(num_classes=0)
    torch.save(saved("mae with its decoder", theirs.state_dict()), tmp_path / "theirs.pth")
    found = read_foreign(tmp_path / "theirs.pth", heads=HEADS)
    given = Initial(found.encoder, found.head, foreign=found)
    left = Start(found.encoder, "theirs.pth", given).record["left_out"]
    assert {"decoder_pos_embed", "decoder_norm.bias", "mask_token", "norm.weight"} <= {*left}
