"""The shape of a discrete VAE, as plain values that go to JSON and back."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from beit.errors import UserError

LARGEST_VOCABULARY, LARGEST_KERNEL = 1 << 20, 99


@dataclass(frozen=True)
class DiscreteVAEConfig:
    """One family of discrete VAEs; DALL-E's architecture is a member (`dalle_config`).

    The encoder is a stem convolution, groups of residual blocks with a halving of the resolution
    between groups, and a head that gives K logits a place. The decoder embeds the codes, has groups
    with a nearest doubling between them, and an output convolution; what is still missing to the
    full resolution is made up by a pixel shuffle.

    Departure: by itself it has bounded logits, codes that the decoder shares, a Gaussian with a
    learned variance and a KL of weight 1; DALL-E has linear logits, codes of the decoder's own,
    logit-Laplace and 6.6.

    Attributes:
        image_size: (height, width) in pixels, each a multiple of `stride`.
        vocabulary: Number of codes, K.
        encoder_widths: Channels of each encoder group, from fine to coarse.
        encoder_blocks: Residual blocks of each encoder group.
        decoder_widths: Channels of each decoder group, from coarse to fine.
        decoder_blocks: Residual blocks of each decoder group.
        encoder_kernels: Kernel sizes along an encoder block's residual path.
        decoder_kernels: The same for the decoder.
        bottleneck: A block's hidden channels are its output channels over this.
        post_gain: Factor on every residual path; None is 1 / (number of blocks)^2, as in DALL-E.
        stem_kernel: Kernel size of the first convolution.
        stem_stride: Its stride; above 1 it makes the whole encoder cheaper.
        downsampling: Max-pooling (DALL-E) or a strided 2x2 convolution that also widens.
        output_kernel: Kernel size of the last convolution.
        head: "linear" is a 1x1 convolution to K logits (DALL-E); "cosine" gives bounded logits
            `cosine_scale` * cos(z, e) between projected features and learned codes.
        code_width: Dimensions of z and e for the cosine head.
        cosine_scale: The bound of the cosine head's logits.
        decoder_input: "separate" learns one vector a code for the decoder (DALL-E); "shared" feeds
            it the cosine head's own codes.
        embedding_width: Channels of the decoder's first layer (128 in DALL-E).
        likelihood: "logit-laplace" (two output channels a colour) or "gaussian" (one a colour).
        gaussian_variance: The Gaussian's variance, pixels in [0, 1]; None learns one number.
    """

    image_size: tuple[int, int] = (64, 64)
    vocabulary: int = 512
    encoder_widths: tuple[int, ...] = (64, 192)
    encoder_blocks: tuple[int, ...] = (0, 2)
    decoder_widths: tuple[int, ...] = (192,)
    decoder_blocks: tuple[int, ...] = (3,)
    encoder_kernels: tuple[int, ...] = (3, 1)
    decoder_kernels: tuple[int, ...] = (3, 1)
    bottleneck: int = 4
    post_gain: float | None = 1.0
    stem_kernel: int = 8
    stem_stride: int = 4
    downsampling: Literal["max-pool", "strided"] = "strided"
    output_kernel: int = 3
    head: Literal["linear", "cosine"] = "cosine"
    code_width: int = 32
    cosine_scale: float = 50.0
    decoder_input: Literal["separate", "shared"] = "shared"
    embedding_width: int = 192
    likelihood: Literal["logit-laplace", "gaussian"] = "gaussian"
    gaussian_variance: float | None = None

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_shapes()

    @property
    def stride(self) -> int:
        """Pixels a code stands for along each side."""
        return self.stem_stride << (len(self.encoder_widths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the grid of codes."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    def view_size(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the view that gives a grid of codes; any grid will do."""
        return grid[0] * self.stride, grid[1] * self.stride

    @property
    def output_shuffle(self) -> int:
        """The pixel shuffle's factor after the last convolution, 1 for none."""
        return self.stride >> (len(self.decoder_widths) - 1)

    @property
    def output_channels(self) -> int:
        """Channels of `decode`: a mean a colour, and a log-scale a colour for logit-Laplace."""
        return 6 if self.likelihood == "logit-laplace" else 3

    @property
    def encoder_gain(self) -> float:
        """The factor on the encoder's residual paths."""
        return self.post_gain if self.post_gain is not None else 1 / sum(self.encoder_blocks) ** 2

    @property
    def decoder_gain(self) -> float:
        """The factor on the decoder's residual paths."""
        return self.post_gain if self.post_gain is not None else 1 / sum(self.decoder_blocks) ** 2

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON knows them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DiscreteVAEConfig":
        """Read what `to_dict` wrote.

        Raises:
            UserError: A key is unknown.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(
                f"the tokenizer configuration has unknown keys ({', '.join(unknown)}): it was "
                "written by another program or a newer version."
            )
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**arguments)

    def _check_choices(self) -> None:
        choices = {
            "downsampling": ("max-pool", "strided"),
            "head": ("linear", "cosine"),
            "decoder_input": ("separate", "shared"),
            "likelihood": ("logit-laplace", "gaussian"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"tokenizer {name} {getattr(self, name)!r} is unknown: choose one of "
                    f"{', '.join(allowed)}."
                )
        if self.decoder_input == "shared" and self.head != "cosine":
            raise UserError(
                "tokenizer decoder_input 'shared' needs head 'cosine': head 'linear' has no codes."
            )

    def _check_shapes(self) -> None:
        for side in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{side}_widths"), getattr(self, f"{side}_blocks")
            if not widths or len(widths) != len(blocks):
                raise UserError(
                    f"tokenizer {side}_widths and {side}_blocks must be lists of one length, got "
                    f"{list(widths)} and {list(blocks)}."
                )
        if any(length <= 0 or length % self.stride for length in self.image_size):
            raise UserError(
                f"tokenizer image_size {self.image_size[0]}x{self.image_size[1]} does not divide "
                f"into steps of {self.stride} pixels: choose multiples of {self.stride}."
            )
        if self.stride % 2 ** (len(self.decoder_widths) - 1):
            raise UserError(
                f"tokenizer decoder_widths has {len(self.decoder_widths)} groups, too many for an "
                f"encoder that shrinks the picture {self.stride} times."
            )
        if (self.stem_kernel - self.stem_stride) % 2 or self.stem_kernel < self.stem_stride:
            raise UserError(
                "tokenizer stem_kernel must be stem_stride plus an even number, got "
                f"{self.stem_kernel} and {self.stem_stride}."
            )
        if not self.output_kernel % 2 or not 0 < self.output_kernel <= LARGEST_KERNEL:
            raise UserError(
                f"tokenizer output_kernel must be an odd number up to {LARGEST_KERNEL}, so that "
                f"the picture keeps its size, got {self.output_kernel}."
            )
        if not 2 <= self.vocabulary <= LARGEST_VOCABULARY or not math.isfinite(self.cosine_scale):
            raise UserError(
                f"tokenizer vocabulary must be 2 to {LARGEST_VOCABULARY}, and cosine_scale finite."
            )


def dalle_config(
    image_size: tuple[int, int] = (112, 112), vocabulary: int = 8192
) -> DiscreteVAEConfig:
    """DALL-E's dVAE (arXiv:2102.12092, A.2), which the paper uses as its tokenizer."""
    return DiscreteVAEConfig(
        image_size=image_size,
        vocabulary=vocabulary,
        encoder_widths=(256, 512, 1024, 2048),
        encoder_blocks=(2, 2, 2, 2),
        decoder_widths=(2048, 1024, 512, 256),
        decoder_blocks=(2, 2, 2, 2),
        encoder_kernels=(3, 3, 3, 1),
        decoder_kernels=(1, 3, 3, 3),
        bottleneck=4,
        post_gain=None,
        stem_kernel=7,
        stem_stride=1,
        downsampling="max-pool",
        output_kernel=1,
        head="linear",
        decoder_input="separate",
        embedding_width=128,
        likelihood="logit-laplace",
    )
