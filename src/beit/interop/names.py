"""What other people call our weights: one table a layout, theirs on the left and ours on the right.

`#` stands for a block's number. Names joined by ` + ` are stacked along the first axis; a bare `0`
in a stack is zeros when it is written, and is left out when it is read. A file need not hold every
row (a model without LayerScale has no gammas); what it holds beside the rows is refused.
"""

from typing import NamedTuple

Table = dict[str, str]

PATCHES = "encoder.embeddings.projection.weight"  # a convolution's 4-D weight for everybody else
POSITIONS = "encoder.embeddings.positions"
MASK = "encoder.embeddings.mask_embedding"
SPECIAL = "encoder.embeddings.special_token"
SHARED_TABLE = "encoder.shared_bias_table"
BLOCK = "encoder.blocks.#."

# The reference's own names, which timm kept for its beit_* and beitv2_* models.
REFERENCE_BODY: Table = {
    "cls_token": SPECIAL,
    "mask_token": MASK,
    "pos_embed": POSITIONS,
    "patch_embed.proj.weight": PATCHES,
    "patch_embed.proj.bias": "encoder.embeddings.projection.bias",
    "rel_pos_bias.relative_position_bias_table": SHARED_TABLE,
    "blocks.#.norm1.weight": BLOCK + "attention_norm.weight",
    "blocks.#.norm1.bias": BLOCK + "attention_norm.bias",
    "blocks.#.attn.qkv.weight": BLOCK + "attention.qkv.weight",
    "blocks.#.attn.q_bias": BLOCK + "attention.query_bias",
    "blocks.#.attn.v_bias": BLOCK + "attention.value_bias",
    "blocks.#.attn.relative_position_bias_table": BLOCK + "bias_table",
    "blocks.#.attn.proj.weight": BLOCK + "attention.output.weight",
    "blocks.#.attn.proj.bias": BLOCK + "attention.output.bias",
    "blocks.#.gamma_1": BLOCK + "attention_scale",
    "blocks.#.gamma_2": BLOCK + "mlp_scale",
    "blocks.#.norm2.weight": BLOCK + "mlp_norm.weight",
    "blocks.#.norm2.bias": BLOCK + "mlp_norm.bias",
    "blocks.#.mlp.fc1.weight": BLOCK + "mlp.expand.weight",
    "blocks.#.mlp.fc1.bias": BLOCK + "mlp.expand.bias",
    "blocks.#.mlp.fc2.weight": BLOCK + "mlp.contract.weight",
    "blocks.#.mlp.fc2.bias": BLOCK + "mlp.contract.bias",
}

# Plain vision Transformers as timm, DeiT, MAE, DINO and MoCo v3 name them. Their keys have a bias,
# ours have none: it moves all scores of a query alike, which the softmax does not see.
VIT_BODY: Table = {
    "cls_token": SPECIAL,
    "pos_embed": POSITIONS,
    "patch_embed.proj.weight": PATCHES,
    "patch_embed.proj.bias": "encoder.embeddings.projection.bias",
    "blocks.#.norm1.weight": BLOCK + "attention_norm.weight",
    "blocks.#.norm1.bias": BLOCK + "attention_norm.bias",
    "blocks.#.attn.qkv.weight": BLOCK + "attention.qkv.weight",
    "blocks.#.attn.qkv.bias": (
        BLOCK + "attention.query_bias + 0 + " + BLOCK + "attention.value_bias"
    ),
    "blocks.#.attn.proj.weight": BLOCK + "attention.output.weight",
    "blocks.#.attn.proj.bias": BLOCK + "attention.output.bias",
    "blocks.#.ls1.gamma": BLOCK + "attention_scale",
    "blocks.#.ls2.gamma": BLOCK + "mlp_scale",
    "blocks.#.norm2.weight": BLOCK + "mlp_norm.weight",
    "blocks.#.norm2.bias": BLOCK + "mlp_norm.bias",
    "blocks.#.mlp.fc1.weight": BLOCK + "mlp.expand.weight",
    "blocks.#.mlp.fc1.bias": BLOCK + "mlp.expand.bias",
    "blocks.#.mlp.fc2.weight": BLOCK + "mlp.contract.weight",
    "blocks.#.mlp.fc2.bias": BLOCK + "mlp.contract.bias",
}

# transformers' files. Its version 5 renames modules in memory, and writes these names still.
_LAYER = "encoder.layer.#."
_ATTENTION = _LAYER + "attention.attention."
TRANSFORMERS_BODY: Table = {
    "embeddings.cls_token": SPECIAL,
    "embeddings.mask_token": MASK,
    "embeddings.position_embeddings": POSITIONS,
    "embeddings.patch_embeddings.projection.weight": PATCHES,
    "embeddings.patch_embeddings.projection.bias": "encoder.embeddings.projection.bias",
    "encoder.relative_position_bias.relative_position_bias_table": SHARED_TABLE,
    _LAYER + "layernorm_before.weight": BLOCK + "attention_norm.weight",
    _LAYER + "layernorm_before.bias": BLOCK + "attention_norm.bias",
    " + ".join(_ATTENTION + part for part in ("query.weight", "key.weight", "value.weight")): (
        BLOCK + "attention.qkv.weight"
    ),
    _ATTENTION + "query.bias": BLOCK + "attention.query_bias",
    _ATTENTION + "value.bias": BLOCK + "attention.value_bias",
    _ATTENTION + "relative_position_bias.relative_position_bias_table": BLOCK + "bias_table",
    _LAYER + "attention.output.dense.weight": BLOCK + "attention.output.weight",
    _LAYER + "attention.output.dense.bias": BLOCK + "attention.output.bias",
    _LAYER + "lambda_1": BLOCK + "attention_scale",
    _LAYER + "lambda_2": BLOCK + "mlp_scale",
    _LAYER + "layernorm_after.weight": BLOCK + "mlp_norm.weight",
    _LAYER + "layernorm_after.bias": BLOCK + "mlp_norm.bias",
    _LAYER + "intermediate.dense.weight": BLOCK + "mlp.expand.weight",
    _LAYER + "intermediate.dense.bias": BLOCK + "mlp.expand.bias",
    _LAYER + "output.dense.weight": BLOCK + "mlp.contract.weight",
    _LAYER + "output.dense.bias": BLOCK + "mlp.contract.bias",
}

# The same as transformers 5 names modules in memory (`model.state_dict()`).
TRANSFORMERS_5_BODY: Table = {
    "embeddings.cls_token": SPECIAL,
    "embeddings.mask_token": MASK,
    "embeddings.position_embeddings": POSITIONS,
    "embeddings.patch_embeddings.projection.weight": PATCHES,
    "embeddings.patch_embeddings.projection.bias": "encoder.embeddings.projection.bias",
    "shared_position_bias.relative_position_bias_table": SHARED_TABLE,
    "layers.#.layernorm_before.weight": BLOCK + "attention_norm.weight",
    "layers.#.layernorm_before.bias": BLOCK + "attention_norm.bias",
    " + ".join(f"layers.#.attention.{part}_proj.weight" for part in "qkv"): (
        BLOCK + "attention.qkv.weight"
    ),
    "layers.#.attention.q_proj.bias": BLOCK + "attention.query_bias",
    "layers.#.attention.v_proj.bias": BLOCK + "attention.value_bias",
    "layers.#.relative_position_bias.relative_position_bias_table": BLOCK + "bias_table",
    "layers.#.attention.o_proj.weight": BLOCK + "attention.output.weight",
    "layers.#.attention.o_proj.bias": BLOCK + "attention.output.bias",
    "layers.#.lambda_1": BLOCK + "attention_scale",
    "layers.#.lambda_2": BLOCK + "mlp_scale",
    "layers.#.layernorm_after.weight": BLOCK + "mlp_norm.weight",
    "layers.#.layernorm_after.bias": BLOCK + "mlp_norm.bias",
    "layers.#.mlp.fc1.weight": BLOCK + "mlp.expand.weight",
    "layers.#.mlp.fc1.bias": BLOCK + "mlp.expand.bias",
    "layers.#.mlp.fc2.weight": BLOCK + "mlp.contract.weight",
    "layers.#.mlp.fc2.bias": BLOCK + "mlp.contract.bias",
}


def _head(norm: str, output: str | None) -> Table:
    """A head's table: the final LayerNorm, and a linear layer unless it has none."""
    names = {f"{norm}.{part}": f"head.norm.{part}" for part in ("weight", "bias")}
    linear = {f"{output}.{part}": f"head.output.{part}" for part in ("weight", "bias")}
    return names if output is None else names | linear


def _prefixed(table: Table, prefix: str) -> Table:
    return {
        " + ".join(prefix + name for name in theirs.split(" + ")): ours
        for theirs, ours in table.items()
    }


class Layout(NamedTuple):
    """A family of files: its name, its encoder's table, and a table a kind of head.

    The kinds of heads: `tokens` (masked-image modelling), `mean` and `special` (classifiers, by
    what they pool), `mean norm` and `special norm` (only the final LayerNorm, no linear layer).
    """

    name: str
    body: Table
    heads: dict[str, Table]


_TIMM_HEADS = {
    "mean": _head("fc_norm", "head"),
    "special": _head("norm", "head"),
    "mean norm": _head("fc_norm", None),
    "special norm": _head("norm", None),
}
REFERENCE = Layout("reference", REFERENCE_BODY, {"tokens": _head("norm", "lm_head"), **_TIMM_HEADS})
TIMM = Layout("timm", REFERENCE_BODY, _TIMM_HEADS)
VIT = Layout("vit", VIT_BODY, _TIMM_HEADS)
_HUB_HEADS = {
    "tokens": _head("layernorm", "lm_head"),
    "mean": _head("beit.pooler.layernorm", "classifier"),
    "special": _head("beit.layernorm", "classifier"),
    "mean norm": _head("beit.pooler.layernorm", None),
    "special norm": _head("beit.layernorm", None),
}
TRANSFORMERS = Layout("transformers", _prefixed(TRANSFORMERS_BODY, "beit."), _HUB_HEADS)
TRANSFORMERS_5 = Layout("transformers 5", _prefixed(TRANSFORMERS_5_BODY, "beit."), _HUB_HEADS)

LAYOUTS = (REFERENCE, VIT, TRANSFORMERS, TRANSFORMERS_5)

# Buffers that files hold beside weights: read, compared with ours, and not kept.
INDEX_SUFFIX = "relative_position_index"

# Where other programs put the weights inside a saved dictionary, by what was asked for.
CONTAINERS = ("model", "module", "state_dict", "teacher", "student")
AVERAGE_CONTAINERS = ("model_ema", "state_dict_ema", "ema")

# What self-supervised models wrap the encoder in, and the parts beside it that are not the encoder.
WRAPPERS: dict[str, tuple[str, ...]] = {
    "module.base_encoder.": ("module.momentum_encoder.", "module.predictor."),  # MoCo v3
    "base_encoder.": ("momentum_encoder.", "predictor."),
    "module.momentum_encoder.": ("module.predictor.",),  # where only the average was kept
    "momentum_encoder.": ("predictor.",),
    "module.backbone.": ("module.head.",),  # DINO
    "backbone.": ("head.",),
    "module.": (),  # torch's DistributedDataParallel
}
MOCO_PREFIXES = tuple(prefix for prefix in WRAPPERS if prefix.endswith("_encoder."))
BESIDE = ("decoder_", "decoder.")  # MAE's decoder; its mask token is the decoder's too
