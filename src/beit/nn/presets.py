"""Named sizes and the paper's two presets, which are not the same model.

`paper` is the plain vision Transformer of the main tables: learned absolute positions, no
LayerScale. `plus` is what the authors' code defaults to: one relative position bias shared by all
blocks and LayerScale. The paper's sizes are base and large; the others are ours, for small
machines.
"""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from beit.errors import UserError
from beit.nn.config import EncoderConfig, RelativePositions

SizeName = Literal["digits", "tiny", "small", "base", "large"]
PresetName = Literal["paper", "plus"]


class Size(TypedDict):
    """Width, depth and heads of an encoder."""

    width: int
    depth: int
    heads: int


class Preset(TypedDict):
    """How an encoder knows positions."""

    absolute_positions: bool
    relative_positions: RelativePositions


SIZES: dict[SizeName, Size] = {
    "digits": {"width": 64, "depth": 4, "heads": 4},
    "tiny": {"width": 192, "depth": 6, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}

PRESETS: dict[PresetName, Preset] = {
    "paper": {"absolute_positions": True, "relative_positions": "none"},
    "plus": {"absolute_positions": False, "relative_positions": "shared"},
}

PLUS_LAYER_SCALE: dict[SizeName, float] = {
    "digits": 0.1,
    "tiny": 0.1,
    "small": 0.1,
    "base": 0.1,
    "large": 1e-5,
}


def encoder_config(
    size: SizeName,
    preset: PresetName,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    **explicit: Any,
) -> EncoderConfig:
    """The configuration of a named size under a preset.

    Args:
        size: A key of SIZES.
        preset: A key of PRESETS.
        image_size: (height, width) in pixels.
        patch_size: (height, width) in pixels.
        explicit: Any other field of EncoderConfig; it wins over size and preset.

    Raises:
        UserError: An unknown name or an impossible value.
    """
    _known("size", size, list(SIZES))
    _known("preset", preset, list(PRESETS))
    for name in explicit:
        _known("encoder setting", name, [field.name for field in fields(EncoderConfig)])
    layer_scale = PLUS_LAYER_SCALE[size] if preset == "plus" else None
    settings: dict[str, Any] = {**SIZES[size], **PRESETS[preset], "layer_scale": layer_scale}
    sizes = {"image_size": image_size, "patch_size": patch_size}
    return EncoderConfig(**{**settings, **sizes, **explicit})


def _known(kind: str, name: str, names: list[str]) -> None:
    if name not in names:
        nearest = get_close_matches(name, names, n=1) or names
        raise UserError(f"unknown {kind} {name!r}; did you mean {' or '.join(nearest)}?")
