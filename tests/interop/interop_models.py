"""Other people's models, tiny and with random weights, for the tests of this room."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beit.batch import Masks
from beit.interop.models import ForeignModel
from beit.interop.names import LAYOUTS
from beit.interop.translate import to_ours

CLASSES = 5
VOCABULARY = 13
WIDTH, DEPTH, HEADS, PATCH = 24, 2, 4, 8
POSITIONS = ("absolute", "shared", "per-layer")

Sizes = dict[str, int]
TINY: Sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "patch": PATCH}
BASE: Sizes = {"width": 768, "depth": 12, "heads": 12, "patch": 16}


def randomise(model: nn.Module) -> None:
    """Give every parameter values that count: fresh models have zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            deviation = 0.2 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
            parameter.normal_(std=deviation, generator=generator)


def hub_config(
    positions: str, scaled: bool, side: int | list[int], sizes: Sizes, **more: Any
) -> Any:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    return transformers.BeitConfig(
        vocab_size=VOCABULARY,
        num_labels=CLASSES,
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["width"],
        image_size=side,
        patch_size=sizes["patch"],
        layer_norm_eps=1e-6,
        use_mask_token=True,
        use_absolute_position_embeddings=positions == "absolute",
        use_relative_position_bias=positions == "per-layer",
        use_shared_relative_position_bias=positions == "shared",
        layer_scale_init_value=0.1 if scaled else 0.0,
        drop_path_rate=0.0,
        **more,
    )


def hub_model(
    kind: str, positions: str, scaled: bool, side: int = 32, sizes: Sizes = TINY, **more: Any
) -> Any:
    """transformers' model of a class, with weights that count."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    model = getattr(transformers, kind)(hub_config(positions, scaled, side, sizes, **more)).eval()
    randomise(model)
    return model


def timm_model(
    positions: str,
    scaled: bool,
    size: tuple[int, int],
    *,
    sizes: Sizes = TINY,
    name: str = "beit_base_patch16_224",
    **more: Any,
) -> Any:
    """timm's BEiT, with weights that count."""
    timm = pytest.importorskip("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(
            name,
            img_size=size,
            patch_size=sizes["patch"],
            embed_dim=sizes["width"],
            depth=sizes["depth"],
            num_heads=sizes["heads"],
            use_abs_pos_emb=positions == "absolute",
            use_rel_pos_bias=positions == "per-layer",
            use_shared_rel_pos_bias=positions == "shared",
            init_values=0.1 if scaled else None,
            **{"num_classes": CLASSES, **more},
        ).eval()
    randomise(model)
    return model


def vit_model(name: str = "vit_tiny_patch16_224", **more: Any) -> Any:
    """timm's plain vision Transformer, tiny, with weights that count."""
    timm = pytest.importorskip("timm")
    settings = {"img_size": 32, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
    settings |= {"num_heads": HEADS, "num_classes": CLASSES}
    model = timm.create_model(name, **{**settings, **more}).eval()
    randomise(model)
    return model


def every_patch(grid: Tensor) -> Masks:
    """(B, h, w) bool; all patches are listed."""
    images, patches = len(grid), grid[0].numel()
    return Masks(grid, torch.arange(patches).expand(images, -1), torch.ones(images, patches))


def gradients_differ(own: ForeignModel, theirs: nn.Module) -> dict[str, float]:
    """Relative differences of all gradients, theirs translated by the same table as the weights.

    A mask embedding that was not used has no gradient, and is left out.
    """
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in theirs.named_parameters()
    }
    layout = next(layout for layout in LAYOUTS if layout.name == own.layout)
    kind = next(kind for kind, table in layout.heads.items() if set(table) <= set(gradients))
    translated = to_ours(layout, layout.body | layout.heads[kind], gradients, "gradients")
    differences: dict[str, float] = {}
    for prefix, module in (("encoder", own.encoder), ("head", own.head)):
        assert module is not None
        for name, parameter in module.named_parameters(prefix=prefix):
            if parameter.grad is None:
                assert "mask_embedding" in name
                continue
            expected = translated[name]
            difference = (parameter.grad - expected).norm() / expected.norm().clamp_min(1e-12)
            differences[name] = float(difference)
    return differences
