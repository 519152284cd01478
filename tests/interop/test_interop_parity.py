"""The same weights in transformers and in timm: the same logits, the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from beit.interop.export import to_timm
from beit.interop.infer import Hints
from beit.interop.models import ForeignModel, model_from_tensors
from beit.nn.heads import ClassifierHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.position import gather_bias, relative_position_index
from interop.interop_models import (
    BASE,
    DEPTH,
    HEADS,
    POSITIONS,
    TINY,
    Sizes,
    every_patch,
    gradients_differ,
    hub_config,
    hub_model,
    randomise,
    timm_model,
    vit_model,
)

FORWARD, BACKWARD = 1e-5, 1e-4


def _read(theirs: nn.Module, size: tuple[int, int], heads: int = HEADS) -> ForeignModel:
    return model_from_tensors(theirs.state_dict(), Hints(size, heads))


def _classify(model: ForeignModel, images: Tensor) -> Tensor:
    assert isinstance(model.head, ClassifierHead)
    logits: Tensor = model.head(model.encoder(images).tokens)
    return logits


def _same_gradients(own: ForeignModel, theirs: nn.Module) -> None:
    """Every gradient of ours is theirs, translated by the same table."""
    differences = gradients_differ(own, theirs)
    assert len(differences) >= len(list(own.encoder.parameters()))  # and the head's four
    bad = {name: value for name, value in differences.items() if not value < BACKWARD}
    assert not bad


def _loss(logits: Tensor) -> Tensor:
    """Of order one, and different for every logit."""
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return (weights * logits).sum() + logits.square().mean()


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "LayerScale"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_masked_models_equal_transformers(positions: str, scaled: bool) -> None:
    _masked_parity(hub_model("BeitForMaskedImageModeling", positions, scaled), 32, TINY)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["absolute", "shared"])
def test_a_masked_model_of_full_size_equals_transformers(positions: str) -> None:
    theirs = hub_model("BeitForMaskedImageModeling", positions, positions == "shared", 224, BASE)
    _masked_parity(theirs, 224, BASE)


def _masked_parity(theirs: Any, side: int, sizes: Sizes) -> None:
    own = _read(theirs, (side, side), sizes["heads"])
    assert isinstance(own.head, MaskedTokenHead)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, side, side, generator=generator)
    places = side // sizes["patch"]
    grid = torch.rand(2, places, places, generator=generator) > 0.5
    logits = MaskedImageModel(own.encoder, own.head)(images, every_patch(grid))
    expected = theirs(images, bool_masked_pos=grid.flatten(1)).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=FORWARD, rtol=0)
    torch.autograd.backward([_loss(logits), _loss(expected)])
    _same_gradients(own, theirs)


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "special"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_classifiers_equal_transformers(positions: str, mean: bool) -> None:
    theirs = hub_model("BeitForImageClassification", positions, mean, use_mean_pooling=mean)
    own = _read(theirs, (32, 32))
    images = torch.randn(2, 3, 32, 32)
    logits, expected = _classify(own, images), theirs(images).logits
    torch.testing.assert_close(logits, expected, atol=FORWARD, rtol=0)
    torch.autograd.backward([_loss(logits), _loss(expected)])
    _same_gradients(own, theirs)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_bare_model_equals_transformers(positions: str) -> None:
    theirs = hub_model("BeitModel", positions, scaled=True)
    own = _read(theirs, (32, 32))
    assert own.head is None
    images = torch.randn(2, 3, 32, 32)
    tokens, expected = own.encoder(images).tokens, theirs(images).last_hidden_state
    torch.testing.assert_close(tokens, expected, atol=FORWARD, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (16, 40)], ids=["square", "rectangle"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "LayerScale"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_classifiers_equal_timm(positions: str, scaled: bool, size: tuple[int, int]) -> None:
    theirs = timm_model(positions, scaled, size, global_pool="avg" if scaled else "token")
    own = _read(theirs, size)
    images = torch.randn(2, 3, *size)
    logits, expected = _classify(own, images), theirs(images)
    torch.testing.assert_close(logits, expected, atol=FORWARD, rtol=0)
    torch.autograd.backward([_loss(logits), _loss(expected)])
    _same_gradients(own, theirs)


def test_version_2_has_the_same_layout() -> None:
    theirs = timm_model("per-layer", True, (32, 32), name="beitv2_base_patch16_224")
    images = torch.randn(2, 3, 32, 32)
    logits = _classify(_read(theirs, (32, 32)), images)
    torch.testing.assert_close(logits, theirs(images), atol=FORWARD, rtol=0)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_plain_vision_transformers_equal_timm(pool: str) -> None:
    theirs = vit_model(global_pool=pool)
    own = _read(theirs, (32, 32))
    assert any("bias on the keys" in note for note in own.notes)
    images = torch.randn(2, 3, 32, 32)
    logits, expected = _classify(own, images), theirs(images)
    torch.testing.assert_close(logits, expected, atol=FORWARD, rtol=0)
    torch.autograd.backward([_loss(logits), _loss(expected)])
    keys = theirs.blocks[0].attn.qkv.bias.grad.chunk(3)[1]
    assert keys.norm() < 1e-4 * theirs.blocks[0].attn.qkv.bias.grad.norm()  # no use at all
    _same_gradients(own, theirs)


def test_a_shared_table_copied_into_layers_computes_the_same() -> None:
    own = _read(hub_model("BeitForMaskedImageModeling", "shared", True), (32, 32))
    exported = to_timm(own.encoder, None)
    assert any("shared bias table" in note for note in exported.notes)
    images = torch.randn(2, 3, 32, 32)
    again = model_from_tensors(load(exported.files[""]), Hints((32, 32)))
    assert again.encoder.config.relative_positions == "per-layer"
    assert again.encoder.config.depth == DEPTH
    torch.testing.assert_close(
        again.encoder(images).tokens, own.encoder(images).tokens, atol=0, rtol=0
    )


def test_transformers_gets_rectangles_wrong() -> None:
    """Why we refuse to write rectangles for transformers; when this fails they mended it."""
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    bias = BeitRelativePositionBias(hub_config("per-layer", False, [16, 40], TINY))
    randomise(bias)
    table = bias.relative_position_bias_table
    right = gather_bias(table, relative_position_index((2, 5)))
    assert not torch.allclose(bias((2, 5))[0], right, atol=1e-3)
