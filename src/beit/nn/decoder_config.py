"""What a segmentation decoder is made of, as one frozen, JSON-able record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from beit.errors import UserError
from beit.nn.config import EncoderConfig
from beit.nn.own_decoder import OURS, require_known

PixelNorm = Literal["batch", "group"]

PYRAMID = (4.0, 2.0, 1.0, 0.5)  # with patches of 16 px these are strides of 4, 8, 16 and 32 px
POOLING = (1, 2, 3, 6)
_STRIDES = (4, 8, 16, 32)
_PUP_CHANNELS = 256  # SETR's
_MOST_GRIDS, _LARGEST_GRID = 16, 256  # far beyond any use, so that no file can ask for the moon


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder.

    Attributes:
        kind: `pup`, progressive upsampling as in SETR (the paper's), `upernet` (the reference's),
            or one that was registered (`beit.nn.own_decoder`).
        classes: Logits a pixel.
        channels: Features of the decoder's convolutions.
        layers: Encoder blocks that are read, 0-based. `upernet` reads one for each step of the
            pyramid; `pup` decodes the last of them, one's own all it likes. An auxiliary head
            reads the last but one.
        auxiliary: A second, shallow head whose loss helps the middle of the encoder in training.
        auxiliary_channels: Features of that head.
        dropout: Share of the channels dropped before a classification, in training.
        norm: Of the convolutions. `batch` is what the reference and transformers have, and their
            weights need it; its statistics are those of a micro-batch, so it wants a dozen pictures
            in each and makes accumulation change the outcome. `group` treats pictures singly, works
            with one and is exact under accumulation and any number of ranks.
        pyramid: `upernet`: how each layer's map is enlarged or reduced, in powers of two.
        pooling: `upernet`: sides of the pyramid pooling's grids.

    Raises:
        UserError: A value is out of range, or the numbers of layers and scales differ.
    """

    kind: str
    classes: int
    channels: int
    layers: tuple[int, ...]
    auxiliary: bool = True
    auxiliary_channels: int = 256
    dropout: float = 0.1
    norm: PixelNorm = "batch"
    pyramid: tuple[float, ...] = PYRAMID
    pooling: tuple[int, ...] = POOLING

    def __post_init__(self) -> None:
        require_known(self.kind)
        if self.norm not in get_args(PixelNorm):
            raise UserError(f"a decoder's norm is batch or group, not {self.norm!r}")
        self._require_sizes()
        if not 0 <= self.dropout < 1:
            raise UserError(f"a decoder's dropout must lie in [0, 1), not {self.dropout}")
        self._require_layers()
        odd = [scale for scale in self.pyramid if not is_power_of_two(scale)]
        if odd or len(self.pyramid) < 2:
            raise UserError(f"a pyramid has two or more powers of two, not {list(self.pyramid)}")

    def _require_layers(self) -> None:
        needed = len(self.pyramid) if self.kind == "upernet" else 1 + self.auxiliary
        given = len(self.layers)
        fits = given == needed if self.kind in OURS else given >= needed
        if not fits or min(self.layers, default=-1) < 0:
            some = f"{needed}" if self.kind in OURS else f"{needed} or more"
            raise UserError(
                f"this {self.kind} decoder reads {some} layers, counted from 0; "
                f"{list(self.layers)} were given"
            )

    def _require_sizes(self) -> None:
        sizes = (self.classes, self.channels, self.auxiliary_channels, *self.pooling)
        if not all(isinstance(size, int) for size in (*sizes, *self.layers)):
            raise UserError(f"sizes and layers of a decoder are whole numbers: {self}")
        if min(sizes) < 1 or not self.pooling:
            raise UserError(f"every size of a decoder must be at least 1: {self}")
        if len(self.pooling) > _MOST_GRIDS or max(self.pooling) > _LARGEST_GRID:
            raise UserError(
                f"pyramid pooling has at most {_MOST_GRIDS} grids of at most {_LARGEST_GRID} "
                f"cells a side, not {list(self.pooling)[:8]}"
            )


def is_power_of_two(scale: float) -> bool:
    """Whether a scale is ... 1/4, 1/2, 1, 2, 4 ... within reason."""
    return scale in {2.0**exponent for exponent in range(-6, 7)}


def default_layers(depth: int) -> tuple[int, int, int, int]:
    """The reference's blocks 3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24, scaled to a depth."""
    thirds, half = round(depth / 3), round(depth / 2)
    return max(0, thirds - 1), max(0, half - 1), max(0, round(2 * depth / 3) - 1), depth - 1


def default_pyramid(patch_size: tuple[int, int]) -> tuple[float, ...]:
    """Scales that give maps with strides of 4, 8, 16 and 32 px.

    The reference does so for patches of 16 and of 8 px. Where the patch is no square of a power of
    two they are 4, 2, 1 and 1/2.
    """
    height, width = patch_size
    if height != width or not is_power_of_two(height):
        return PYRAMID
    return tuple(height / stride for stride in _STRIDES)


def decoder_config(
    kind: str, encoder: EncoderConfig, classes: int, **explicit: Any
) -> DecoderConfig:
    """A decoder's configuration with the sources' choices for an encoder.

    `upernet` has as many channels as the encoder has features and an auxiliary head (the
    reference); `pup` has 256 channels, or as many as the encoder has features where that is less,
    and no auxiliary head. One's own has what `pup` has, and the layers of `upernet`.

    Args:
        kind: Which decoder.
        encoder: What it reads.
        classes: Logits a pixel.
        explicit: Any other field of DecoderConfig; it wins.

    Raises:
        UserError: An unknown kind or an impossible value.
    """
    layers = default_layers(encoder.depth)
    settings: dict[str, Any] = {"channels": encoder.width, "layers": layers}
    if kind == "upernet":
        settings["pyramid"] = default_pyramid(encoder.patch_size)
    else:
        auxiliary = bool(explicit.get("auxiliary", False))
        settings |= {
            "channels": min(_PUP_CHANNELS, encoder.width),
            "auxiliary": auxiliary,
        }
        if kind in OURS:
            settings["layers"] = layers[-2:] if auxiliary else layers[-1:]
    return decoder_config_from({**settings, **explicit, "kind": kind, "classes": classes})


def decoder_config_from(values: Mapping[str, Any]) -> DecoderConfig:
    """Read a decoder's configuration as `asdict` and JSON left it.

    Raises:
        UserError: It is not one.
    """
    known = {field.name: field for field in fields(DecoderConfig)}
    unknown = [name for name in values if name not in known]
    missing = [name for name in ("kind", "classes", "channels", "layers") if name not in values]
    if unknown or missing:
        what = f"unknown {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise UserError(f"this does not describe a decoder: {what}")
    read: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    try:
        return DecoderConfig(**read)
    except TypeError as error:
        raise UserError(f"this does not describe a decoder: {error}") from error
