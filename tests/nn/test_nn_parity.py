"""The same weights in transformers' BEiT give the same logits, for both presets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from beit.batch import Masks
from beit.nn.encoder import Encoder
from beit.nn.heads import MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.presets import PresetName, encoder_config

SHARED_NAMES = {  # theirs: ours, inside a block
    "layernorm_before.weight": "attention_norm.weight",
    "layernorm_before.bias": "attention_norm.bias",
    "layernorm_after.weight": "mlp_norm.weight",
    "layernorm_after.bias": "mlp_norm.bias",
    "attention.q_proj.bias": "attention.query_bias",
    "attention.v_proj.bias": "attention.value_bias",
    "attention.o_proj.weight": "attention.output.weight",
    "attention.o_proj.bias": "attention.output.bias",
    "mlp.fc1.weight": "mlp.expand.weight",
    "mlp.fc1.bias": "mlp.expand.bias",
    "mlp.fc2.weight": "mlp.contract.weight",
    "mlp.fc2.bias": "mlp.contract.bias",
}
WHOLE_NAMES = {
    "beit.embeddings.cls_token": "encoder.embeddings.special_token",
    "beit.embeddings.mask_token": "encoder.embeddings.mask_embedding",
    "beit.embeddings.patch_embeddings.projection.bias": "encoder.embeddings.projection.bias",
    "layernorm.weight": "head.norm.weight",
    "layernorm.bias": "head.norm.bias",
    "lm_head.weight": "head.output.weight",
    "lm_head.bias": "head.output.bias",
}
PRESET_NAMES = {
    "paper": {"beit.embeddings.position_embeddings": "encoder.embeddings.positions"},
    "plus": {"beit.shared_position_bias.relative_position_bias_table": "encoder.shared_bias_table"},
}


def _their_state(model: MaskedImageModel, preset: PresetName) -> dict[str, Tensor]:
    ours = model.state_dict()
    projection = ours["encoder.embeddings.projection.weight"]
    theirs = {"beit.embeddings.patch_embeddings.projection.weight": projection.reshape(-1, 3, 8, 8)}
    theirs |= {name: ours[own] for name, own in (WHOLE_NAMES | PRESET_NAMES[preset]).items()}
    names = dict(SHARED_NAMES)
    if preset == "plus":
        names |= {"lambda_1": "attention_scale", "lambda_2": "mlp_scale"}
    for number in range(model.encoder.config.depth):
        prefix, own_prefix = f"beit.layers.{number}.", f"encoder.blocks.{number}."
        theirs |= {prefix + name: ours[own_prefix + own] for name, own in names.items()}
        qkv = ours[own_prefix + "attention.qkv.weight"].chunk(3)
        for part, weight in zip("qkv", qkv, strict=True):
            theirs[f"{prefix}attention.{part}_proj.weight"] = weight
    return theirs


def _their_model(preset: PresetName) -> Any:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    config = transformers.BeitConfig(
        vocab_size=13,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        use_mask_token=True,
        use_absolute_position_embeddings=preset == "paper",
        use_relative_position_bias=False,
        use_shared_relative_position_bias=preset == "plus",
        layer_scale_init_value=0.1 if preset == "plus" else 0.0,
        drop_path_rate=0.0,
        use_mean_pooling=True,
    )
    return transformers.BeitForMaskedImageModeling(config).eval()


@pytest.mark.parametrize("preset", ["paper", "plus"])
def test_logits_and_gradients_equal_those_of_transformers(preset: PresetName) -> None:
    torch.manual_seed(0)
    config = encoder_config("digits", preset, (32, 32), (8, 8), width=24, depth=3)
    ours = MaskedImageModel(Encoder(config), MaskedTokenHead(24, 13)).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs = _their_model(preset)
    theirs.load_state_dict(_their_state(ours, preset), strict=True)

    images, grid = torch.randn(2, 3, 32, 32), torch.rand(2, 4, 4) > 0.5
    masks = Masks(grid, torch.arange(16).expand(2, -1), torch.ones(2, 16))
    logits = ours(images, masks)
    expected = theirs(images, bool_masked_pos=grid.flatten(1)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)

    logits.square().mean().backward()
    expected.square().mean().backward()
    projection = theirs.beit.embeddings.patch_embeddings.projection.weight.grad
    torch.testing.assert_close(
        ours.encoder.embeddings.projection.weight.grad, projection.flatten(1), atol=1e-5, rtol=1e-3
    )
