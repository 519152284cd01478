"""The tokenizer's encoder and output layer in half precision, shaped for fast kernels.

Legend: B images, R places of any pictures, D width of the last group, C channels of the head.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.tokenizer.dvae import Layers

STEM_CHANNELS = 8  # tensor cores take channels by eights; cuDNN has no good kernel for three


class PaddedStem(nn.Module):
    """A convolution that is given more channels than the picture has, all of them zero: exact."""

    def __init__(self, convolution: nn.Conv2d, channels: int = STEM_CHANNELS) -> None:
        super().__init__()
        self.missing = channels - convolution.in_channels
        # A copy and not a new module, which would draw weights from the caller's generator.
        self.convolution = copy.deepcopy(convolution)
        self.convolution.in_channels = channels
        padded = functional.pad(convolution.weight.detach(), (0, 0, 0, 0, 0, self.missing))
        self.convolution.weight = nn.Parameter(padded, requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, width, h, w)."""
        padded = functional.pad(pixels, (0, 0, 0, 0, 0, self.missing))
        features: Tensor = self.convolution(padded)
        return features


class SlicedPooling(nn.Module):
    """The maximum of each 2x2 square, as `nn.MaxPool2d(2)`, whose kernel finds indices besides."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D, h, w) to (B, D, h // 2, w // 2)."""
        height, width = (length // 2 * 2 for length in features.shape[2:])
        rows = torch.maximum(features[:, :, 0:height:2], features[:, :, 1:height:2])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


def cheap_encoder(
    encoder: nn.Sequential, dtype: torch.dtype, *, padded_stem: bool, sliced_pooling: bool
) -> nn.Sequential:
    """A frozen copy of a discrete VAE's encoder that computes the same, more cheaply.

    Args:
        encoder: Stem convolution, then blocks and downsampling; left as it is.
        dtype: Of the copy's weights and of what it is fed.
        padded_stem: Zero channels for the stem.
        sliced_pooling: Max-pooling from slices.

    Returns:
        Weights lie channels last; feed it pictures that do.
    """
    stem, *others = encoder
    assert isinstance(stem, nn.Conv2d)
    layers: list[nn.Module] = [PaddedStem(stem) if padded_stem else copy.deepcopy(stem)]
    for layer in others:
        slices = sliced_pooling and isinstance(layer, nn.MaxPool2d)
        layers.append(SlicedPooling() if slices else copy.deepcopy(layer))
    cheap = Layers(*layers).to(dtype).requires_grad_(False)
    # torch types `to` without the memory format alone.
    cheap.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return cheap


class RowHead(nn.Module):
    """The head, a 1x1 convolution, as a matrix product: half precision in, float32 out.

    Products of two half-precision numbers are exact in float32, and so are sums kept, so that only
    the rounding of the weights is lost: close logits do not become equal.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, head: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        assert head.bias is not None
        self.register_buffer("weight", head.weight.detach()[:, :, 0, 0].to(dtype))  # (C, D)
        self.register_buffer("bias", head.bias.detach().clone())  # (C,) float32

    def products(self, rows: Tensor) -> Tensor:
        """What (R, D) rows give without the bias: (R, C) float32."""
        if rows.is_cuda:
            return torch.mm(rows, self.weight.T, out_dtype=torch.float32)
        return rows.float() @ self.weight.float().T

    def forward(self, products: Tensor) -> Tensor:
        """The most likely code of (R, K) products: (R,) int64.

        Compiled, this is one pass over the logits, the largest tensor of all; without, the bias is
        added in place, so that there is one such tensor and not two.
        """
        compiling = torch.compiler.is_compiling()
        logits = products + self.bias if compiling else products.add_(self.bias)
        return logits.argmax(1)
