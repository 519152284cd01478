"""Segmenters to other people's files and back, bit by bit; what does not fit is refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from beit.errors import UserError
from beit.interop.export import Exported
from beit.interop.models import ForeignModel, model_from_file
from beit.interop.segmentation import renames
from beit.interop.segmentation_export import (
    segmentation_to_reference,
    segmentation_to_transformers,
)
from beit.interop.segmentation_names import DECODER_LAYOUTS, REFERENCE
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import decoder_config
from beit.nn.encoder import Encoder
from beit.nn.segmenter import Segmenter, build_segmenter
from interop.interop_models import POSITIONS, randomise
from interop.test_segmentation_parity import segmenting_model

LABELS = ("sky", "road", "tree")


def ours(
    positions: str = "per-layer",
    *,
    patch: int = 16,
    grid: tuple[int, int] = (4, 4),
    depth: int = 4,
    **more: Any,
) -> Segmenter:
    config = EncoderConfig(
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=(patch, patch),
        width=24,
        depth=depth,
        heads=4,
        absolute_positions=positions == "absolute",
        relative_positions="none" if positions == "absolute" else positions,  # type: ignore[arg-type]
        layer_scale=0.1 if positions == "per-layer" else None,
        drop_path=0.1,
    )
    settings = {"auxiliary_channels": 8, "norm": "batch", **more}
    decoder = decoder_config(settings.pop("kind", "upernet"), config, len(LABELS), **settings)
    segmenter = build_segmenter(Encoder(config), decoder, LABELS).eval()
    randomise(segmenter)
    for module in segmenter.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            module.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    return segmenter


def write(exported: Exported, path: Path) -> Path:
    for name, data in exported.files.items():
        file = path / name if name else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def read(path: Path, **more: Any) -> ForeignModel:
    model = model_from_file(path, **{"heads": 4, **more})
    assert model.segmenter is not None and model.segmenter.encoder is model.encoder
    assert model.head is None and not model.segmenter.training
    return model


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        assert value.dtype == other[name].dtype


def test_tables_name_everything_once() -> None:
    wanted = {
        name for name in ours().state_dict() if not name.startswith("encoder.")
    }  # with an auxiliary head and every part of the pyramid
    for layout in DECODER_LAYOUTS:
        rows = renames(layout)
        assert len(set(rows.values())) == len(rows)
        assert wanted <= set(rows.values())
        assert all(name.startswith(layout.decoder) for name in rows)


@pytest.mark.parametrize("auxiliary", [True, False], ids=["auxiliary", "alone"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_there_and_back_is_bitwise(tmp_path: Path, positions: str, auxiliary: bool) -> None:
    model = ours(positions, auxiliary=auxiliary)
    there = write(segmentation_to_transformers(model), tmp_path / "there")
    back = read(there).segmenter
    assert back is not None and back.labels == LABELS
    assert back.encoder.config == model.encoder.config
    assert (back.config.layers, back.config.pyramid) == (model.config.layers, model.config.pyramid)
    same(dict(back.state_dict()), dict(model.state_dict()))
    again = segmentation_to_transformers(back)
    for name, data in again.files.items():
        assert (there / name).read_bytes() == data, name


@pytest.mark.parametrize(
    "patch, grid", [(16, (4, 4)), (16, (3, 5)), (8, (4, 4))], ids=["square", "rectangle", "8 px"]
)
@pytest.mark.parametrize("positions", POSITIONS)
def test_the_reference_and_back_is_bitwise(
    tmp_path: Path, positions: str, patch: int, grid: tuple[int, int]
) -> None:
    model = ours(positions, patch=patch, grid=grid)
    exported = segmentation_to_reference(model)
    assert any("out_indices=[0, 1, 2, 3], channels=24" in note for note in exported.notes)
    there = write(exported, tmp_path / "there.pth")
    result = read(there, image_size=model.encoder.config.image_size)
    back = result.segmenter
    assert back is not None and back.labels == LABELS
    assert any("layers 0, 1, 2, 3" in note for note in result.notes)
    assert back.config.pyramid == ((4, 2, 1, 0.5) if patch == 16 else (2, 1, 0.5, 0.25))
    before, after = dict(model.state_dict()), dict(back.state_dict())
    mask = "encoder.embeddings.mask_embedding"
    assert not after.pop(mask).any() and before.pop(mask).any()
    same(after, before)
    first = torch.load(there, weights_only=True)
    write(segmentation_to_reference(back), tmp_path / "again.pth")
    second = torch.load(tmp_path / "again.pth", weights_only=True)
    same(first["state_dict"], second["state_dict"])
    assert first["meta"] == second["meta"] == {"CLASSES": list(LABELS)}


def test_the_reference_s_file_has_the_reference_s_names(tmp_path: Path) -> None:
    write(segmentation_to_reference(ours()), tmp_path / "there.pth")
    read_back = torch.load(tmp_path / "there.pth", weights_only=True)["state_dict"]
    assert set(read_back) >= {
        *("backbone.cls_token", "backbone.blocks.3.attn.relative_position_index"),
        *("backbone.fpn1.0.weight", "backbone.fpn1.1.running_var", "backbone.fpn1.3.bias"),
        *("backbone.fpn2.0.weight", "decode_head.conv_seg.bias", "decode_head.bottleneck.bn.bias"),
        *("decode_head.psp_modules.3.1.conv.weight", "decode_head.lateral_convs.2.bn.weight"),
        *("decode_head.fpn_convs.0.conv.weight", "decode_head.fpn_bottleneck.conv.weight"),
        *("auxiliary_head.convs.0.bn.num_batches_tracked", "auxiliary_head.conv_seg.weight"),
    }
    assert "backbone.mask_token" not in read_back


@pytest.mark.parametrize("last", [True, False], ids=["last block", "not the last"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_transformers_loads_what_we_write(tmp_path: Path, positions: str, last: bool) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    model = ours(positions) if last else ours(positions, depth=5, layers=(0, 1, 2, 3))
    exported = segmentation_to_transformers(model)
    assert any("block of zeros" in note for note in exported.notes) == last
    write(exported, tmp_path / "there")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, told = transformers.BeitForSemanticSegmentation.from_pretrained(
            tmp_path / "there", output_loading_info=True
        )
        theirs.save_pretrained(tmp_path / "again")
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == dict(enumerate(LABELS))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, output = theirs(images).logits, model(images)
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=0)
    again = read(tmp_path / "again").segmenter  # what transformers saves is the same, too
    assert again is not None and again.encoder.config == model.encoder.config
    same(dict(again.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("mask", [True, False], ids=["mask token", "none"])
def test_we_load_what_transformers_writes(tmp_path: Path, mask: bool) -> None:
    theirs = segmenting_model("per-layer", True)
    theirs.config.use_mask_token = mask
    if not mask:
        theirs.beit.embeddings.mask_token = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path / "theirs")
    result = read(tmp_path / "theirs")
    assert result.layout == "transformers" and len(result.labels) == 5
    assert any("read after 1, 2, 4, 5 blocks" in note for note in result.notes)
    assert result.segmenter is not None
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(
        result.segmenter(images).logits, theirs(images).logits, atol=1e-5, rtol=0
    )
    again = write(segmentation_to_transformers(result.segmenter), tmp_path / "again")
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "theirs", again)
    )
    same(after, before)


def _changed(weights: dict[str, Tensor], change: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in {**weights, **change}.items() if value is not None}


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (
        {"decode_head.lateral_convs.1.bn.running_mean": None},
        "no decode_head.lateral_convs.1.bn.running_mean",
    ),
    "surplus": (
        {"decode_head.lateral_convs.3.conv.weight": torch.zeros(24, 24, 1, 1)},
        "unexpected decode_head.lateral_convs.3.conv.weight",
    ),
    "unknown": (
        {"decode_head.attention.weight": torch.zeros(3)},
        "unexpected decode_head.attention.weight",
    ),
    "shape": (
        {"decode_head.fpn_bottleneck.conv.weight": torch.zeros(24, 95, 3, 3)},
        "decode_head.fpn_bottleneck.conv.weight has shape (24, 95, 3, 3) instead of (24, 96, 3, 3)",
    ),
    "kind": (
        {"decode_head.bottleneck.bn.bias": torch.zeros(24, dtype=torch.int64)},
        "decode_head.bottleneck.bn.bias holds torch.int64",
    ),
    "encoder": (
        {"backbone.blocks.1.norm2.bias": None},
        "no blocks.1.norm2.bias",
    ),
    "no tensor": ({"decode_head.conv_seg.bias": "wide"}, "decode_head.conv_seg.bias are not"),
    "classifier": (
        {"decode_head.conv_seg.weight": torch.zeros(3)},
        "no 4-D decode_head.conv_seg.weight",
    ),
    "auxiliary": (
        {"auxiliary_head.convs.0.conv.weight": None},
        "no 4-D auxiliary_head.convs.0.conv.weight",
    ),
    "other pyramid": (
        {"backbone.fpn1.3.weight": None, "backbone.fpn1.3.bias": None},
        "unexpected backbone.fpn1.1",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, words = CHANGES[name]
    write(segmentation_to_reference(ours()), tmp_path / "good.pth")
    weights = torch.load(tmp_path / "good.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": _changed(weights, change)}, tmp_path / "bad.pth")
    with pytest.raises(UserError) as caught:
        model_from_file(tmp_path / "bad.pth")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"auxiliary_num_convs": 2}, "auxiliary_num_convs 2"),
        ({"auxiliary_concat_input": True}, "auxiliary_concat_input True"),
        ({"out_indices": None}, "out_indices"),
        ({"out_indices": [1, 2, 3, 4]}, "embeddings"),
        ({"out_indices": [2, 3, 4, -1]}, "embeddings"),
        ({"out_indices": [2, 3, 4]}, "reads 4 layers"),
        ({"out_indices": [2, 3, 4, 9]}, "reads layer 7"),
        ({"out_indices": ["a"]}, "out_indices"),
        ({"pool_scales": [1 << 40, 2, 3, 6]}, "at most 256"),
        ({"pool_scales": [1, 2, 3]}, "unexpected decode_head.psp_modules.3.1"),
        ({"pool_scales": [1] * 99}, "at most 16"),
        ({"pool_scales": []}, "at least 1"),
    ],
    ids=str,
)
def test_impossible_descriptions_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    write(segmentation_to_transformers(ours()), tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text()) | change
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        model_from_file(tmp_path / "hub")


def test_transformers_weights_without_their_config_are_refused(tmp_path: Path) -> None:
    folder = write(segmentation_to_transformers(ours()), tmp_path / "hub")
    with pytest.raises(UserError, match="which layers"):
        model_from_file(folder / "model.safetensors", heads=4)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"kind": "pup"}, "UPerNet with batch norms only"),
        ({"norm": "group"}, "UPerNet with batch norms only"),
        ({"pyramid": (2.0, 1.0, 1.0, 0.5)}, "pyramid"),
    ],
    ids=str,
)
def test_what_others_do_not_have_is_not_written(changes: dict[str, Any], words: str) -> None:
    segmenter = ours(**changes)
    for export in (segmentation_to_reference, segmentation_to_transformers):
        with pytest.raises(UserError, match=words):
            export(segmenter)


def test_more_that_transformers_does_not_have() -> None:
    with pytest.raises(UserError, match="16 channels"):
        segmentation_to_transformers(ours(channels=16))
    with pytest.raises(UserError, match="once and in order"):
        segmentation_to_transformers(ours(layers=(0, 1, 1, 3)))
    with pytest.raises(UserError, match="square"):
        segmentation_to_transformers(ours(grid=(4, 6)))
    with pytest.raises(UserError, match="8 or 16 px"):
        segmentation_to_reference(ours(patch=4, pyramid=(4.0, 2.0, 1.0, 0.5)))
    with pytest.raises(UserError, match="2 labels were given for 3"):
        segmentation_to_transformers(ours(), ("a", "b"))
    assert REFERENCE.name == "reference"


def test_zeros_alone_are_no_blocks_to_leave_out(tmp_path: Path) -> None:
    folder = write(segmentation_to_transformers(ours()), tmp_path / "hub")
    weights = load_file(folder / "model.safetensors")
    torch.save({name: torch.zeros_like(v) for name, v in weights.items()}, tmp_path / "w.bin")
    (folder / "model.safetensors").unlink()
    (tmp_path / "w.bin").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="reads layer 3, and this encoder has 0 to 0"):
        model_from_file(folder)
