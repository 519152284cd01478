"""Decoders for segmentation: shared parts, SETR's progressive upsampling, an auxiliary head.

The other decoder, UPerNet, is in `beit.nn.upernet`. All are plain convolutions on token maps.
"""

# B images, D width, C channels, K classes, (h, w) a map, P the side of a patch

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.nn.batch_norm import RankedBatchNorm2d
from beit.nn.decoder_config import DecoderConfig, PixelNorm
from beit.nn.transformer import NORM_EPSILON

_LARGEST_GROUPS, _SMALLEST_GROUP = 32, 8


def resized(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, without aligned corners, as every resizing here, in the reference and in SETR."""
    return functional.interpolate(features, size=size, mode="bilinear", align_corners=False)


def map_norm(kind: PixelNorm, channels: int) -> nn.Module:
    """The normalisation of a convolution's output.

    Groups have eight channels or more: one channel of a 1x1 map, normalised alone, would be 0.
    """
    if kind == "batch":
        return RankedBatchNorm2d(channels)
    fitting = (2**power for power in range(int(math.log2(_LARGEST_GROUPS)), -1, -1))
    groups = next((n for n in fitting if channels % n == 0 and channels >= n * _SMALLEST_GROUP), 1)
    return nn.GroupNorm(groups, channels)


class ConvolutionBlock(nn.Module):
    """Convolution without bias, norm, ReLU: (B, D, h, w) to (B, C, h, w)."""

    def __init__(self, inputs: int, channels: int, kernel: int, norm: PixelNorm) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = map_norm(norm, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve; the size stays."""
        return functional.relu(self.norm(self.convolution(features)))


class PixelClassifier(nn.Module):
    """Whole channels are dropped in training, then a 1x1 convolution gives logits."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.channels = channels
        self.dropout = dropout
        self.output = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Tensor, draws: Tensor | None = None) -> Tensor:
        """(B, C, h, w) features to (B, K, h, w) logits.

        Args:
            features: What is classified.
            draws: (B, C) uniform draws in [0, 1) that decide which channels of which picture are
                dropped; None while training draws them from the default generator.
        """
        if self.training and self.dropout > 0:
            if draws is None:
                draws = torch.rand(features.shape[:2], device=features.device)
            kept = (draws >= self.dropout).to(features.dtype) / (1 - self.dropout)
            features = features * kept[:, :, None, None]
        return self.output(features)  # type: ignore[no-any-return]


class ConvolutionalHead(nn.Module):
    """The auxiliary head: one convolution block and a classification (a small FCN)."""

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__()
        channels = config.auxiliary_channels
        self.convolution = ConvolutionBlock(width, channels, 3, config.norm)
        self.classifier = PixelClassifier(channels, config.classes, config.dropout)

    def forward(self, features: Tensor, draws: Tensor | None = None) -> Tensor:
        """(B, D, h, w) to (B, K, h, w)."""
        return self.classifier(self.convolution(features), draws)  # type: ignore[no-any-return]


def upsampling_steps(patch_size: tuple[int, int]) -> int:
    """Doublings from patches to pixels, rounded up: 4 for 16 px; at least 1."""
    return max(1, math.ceil(math.log2(max(patch_size))))


class ProgressiveUpsampling(nn.Module):
    """SETR-PUP (arXiv:2012.15840, section 3.2): convolutions with doublings between them.

    The last layer's tokens go through LayerNorm, then as often as it takes from patches to pixels
    (four times for 16 px) through a 3x3 convolution block and a bilinear doubling. The last
    doubling, to exactly the pixels that are wanted, is left to whoever wants them, and the
    classification is done before it: a 1x1 convolution and bilinear resizing can change places,
    and so four times fewer pixels are classified. With 16 px the logits come at 1/2 of the
    picture's size; any patch size will do.

    Departure: the paper speaks of "several deconvolution layers as decoder" and names SETR-PUP as
    its model; that has no transposed convolutions, and SETR's form is built here. SETR's several
    auxiliary heads, copies of this decoder in small, are one head as in the reference, if any.
    """

    def __init__(self, config: DecoderConfig, width: int, patch_size: tuple[int, int]) -> None:
        super().__init__()
        channels = config.channels
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.convolutions = nn.ModuleList(
            ConvolutionBlock(channels if number else width, channels, 3, config.norm)
            for number in range(upsampling_steps(patch_size))
        )
        self.classifier = PixelClassifier(channels, config.classes, config.dropout)

    def rescaled(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Nothing is rescaled before decoding."""
        return list(maps)

    def forward(self, features: Sequence[Tensor], draws: Tensor | None = None) -> Tensor:
        """Decode the last of the (B, D, h, w) maps to (B, K, h', w') logits."""
        decoded = self.norm(features[-1].movedim(1, -1)).movedim(-1, 1)
        for number, convolution in enumerate(self.convolutions):
            if number:
                decoded = resized(decoded, (2 * decoded.shape[2], 2 * decoded.shape[3]))
            decoded = convolution(decoded)
        return self.classifier(decoded, draws)  # type: ignore[no-any-return]
