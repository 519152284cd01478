"""Plain vision Transformers: which are our encoder, and why the others are not.

Some leave away what is zero in ours; that is filled in, and told.
"""

# N patches, D width

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from beit.interop.translate import Tensors
from beit.nn.transformer import NORM_EPSILON

CLASSES = ("VisionTransformer", "Beit")  # timm's own; whatever else it has computes otherwise

_BLOCK = r"blocks\.\d+\."
REFUSED: dict[str, str] = {  # names in a file, and what they say
    r"(dist_token|head_dist)": "it has a distillation token beside the special one",
    r"(reg_token|register_tokens)": "it has register tokens beside the special one",
    r"norm_pre\.": "it normalises tokens before the first block, as CLIP's do",
    r"blocks_token_only\.": "it attends to the special token in blocks of its own (CaiT)",
    r"attn_pool\.": "it pools by attention, and has no special token",
    r"patch_embed\.backbone\.": "its patches come from a convolutional network",
    r"patch_embed\.norm\.": "it normalises its patches",
    _BLOCK + r"attn\.[qk]_norm\.": "it normalises queries and keys",
    _BLOCK + r"(attn|mlp)\.norm\.": "it normalises inside attention or MLP",
    _BLOCK + r"(attn\.rel_pos\.|attn\.rel_pos_)": "its relative positions are not BEiT's",
    _BLOCK + r"attn\.lambda_": "its attention is a difference of two",
    _BLOCK + r"(attns|ffns)\.": "its blocks have parallel branches",
    _BLOCK + r"mlp\.(fc1_g|fc1_x|w12|w3)\.": "its MLPs are gated",
}
QUERY_KEY_VALUE = "attn.qkv.bias"


def reason_against(names: Iterable[str]) -> str | None:
    """Why a model with tensors of these names is no encoder of ours, if a name tells."""
    found = list(names)
    for pattern, reason in REFUSED.items():
        matching = re.compile(pattern)
        if any(matching.match(name) for name in found):
            return reason
    return None


def reason_in_parts(model: Any) -> str | None:
    """Why one of timm's models, whole, is no encoder of ours; None if nothing speaks against it."""
    if type(model).__name__ not in CLASSES:
        return f"it is a {type(model).__name__}"
    reason = reason_against(model.state_dict())
    if reason is not None:
        return reason
    if model.cls_token is None:
        return "it has no special token, and pools its patches"
    block = model.blocks[0]
    if type(block).__name__ != "Block" or type(block.attn).__name__ != "Attention":
        return f"its blocks are of another kind ({type(block).__name__})"
    if not isinstance(block.mlp.act, nn.GELU) or block.mlp.act.approximate != "none":
        return f"its MLPs use {type(block.mlp.act).__name__}, not GELU"
    if not isinstance(block.norm1, nn.LayerNorm) or block.norm1.eps != NORM_EPSILON:
        return f"its blocks do not normalise as ours do, by LayerNorm with eps {NORM_EPSILON}"
    if not isinstance(getattr(model, "patch_drop", nn.Identity()), nn.Identity):
        return "it drops patches while it is trained"
    return None


def completed(theirs: Tensors, image_size: tuple[int, int] | None) -> tuple[Tensors, list[str]]:
    """Fill in the zeros that some plain vision Transformers leave away.

    Args:
        theirs: A file's tensors in timm's names.
        image_size: (height, width) where it is known.

    Returns:
        The tensors, and what was filled in.
    """
    theirs, notes = dict(theirs), []
    if _without_special_position(theirs, image_size):
        positions = theirs["pos_embed"]
        theirs["pos_embed"] = torch.cat((torch.zeros_like(positions[:, :1]), positions), 1)
        notes.append("its special token has no position: here that is zeros")
    weights = [name for name in theirs if re.fullmatch(_BLOCK + r"attn\.qkv\.weight", name)]
    if weights and not any(name.endswith(QUERY_KEY_VALUE) for name in theirs):
        for name in weights:
            bias = torch.zeros(len(theirs[name]))
            theirs[name.removesuffix("weight") + "bias"] = bias
        notes.append("its queries and values have no bias: here it is zeros")
    return theirs, notes


def _without_special_position(theirs: Tensors, image_size: tuple[int, int] | None) -> bool:
    """Whether there is a position a patch and none for the special token (DeiT III)."""
    positions, kernel = theirs.get("pos_embed"), theirs.get("patch_embed.proj.weight")
    if positions is None or kernel is None or positions.dim() != 3 or kernel.dim() != 4:
        return False
    count = int(positions.shape[1])
    if image_size is not None:
        height, width = (int(side) for side in kernel.shape[2:])
        return height * width > 0 and count == (image_size[0] // height) * (image_size[1] // width)
    # Nothing says how large the pictures are; of those who do this, all have LayerScale.
    return "blocks.0.ls1.gamma" in theirs and count > 1 and math.isqrt(count) ** 2 == count
