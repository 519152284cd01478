"""UPerNet (arXiv:1807.10221) over a pyramid made of a plain Transformer's layers, as the reference.

Pooling is written as reshapes and matrix products: their gradients are the same on every run, also
on a GPU, and they can be exported.
"""

# B images, D width, C channels, K classes, (h, w) the patch grid or a map, S side of a pooled map

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.errors import UserError
from beit.nn.decoder_config import DecoderConfig, PixelNorm
from beit.nn.decoders import ConvolutionBlock, PixelClassifier, map_norm, resized


class Enlarge(nn.Module):
    """Transposed 2x2 convolutions of stride 2, norm and GELU between them: (B, D, h, w) larger."""

    def __init__(self, width: int, doublings: int, norm: PixelNorm) -> None:
        super().__init__()
        self.deconvolutions = nn.ModuleList(
            nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(doublings)
        )
        self.norms = nn.ModuleList(map_norm(norm, width) for _ in range(doublings - 1))

    def forward(self, features: Tensor) -> Tensor:
        """Double the sides as often as there are deconvolutions."""
        features = self.deconvolutions[0](features)
        for norm, deconvolution in zip(self.norms, self.deconvolutions[1:], strict=True):
            features = deconvolution(functional.gelu(norm(features)))
        return features


class Reduce(nn.Module):
    """Maximum over squares; a last row or column that fills none is left out, as torch does."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D, h // side, w // side)."""
        side = self.side
        rows, columns = features.shape[2] // side, features.shape[3] // side
        whole = features[:, :, : rows * side, : columns * side]
        squares = whole.reshape(*whole.shape[:2], rows, side, columns, side)
        return squares.transpose(3, 4).flatten(4).max(4).values


def rescaler(scale: float, width: int, norm: PixelNorm) -> nn.Module:
    """What brings a layer's map to its place in the pyramid."""
    if scale > 1:
        return Enlarge(width, round(math.log2(scale)), norm)
    return nn.Identity() if scale == 1 else Reduce(round(1 / scale))


def pooling_matrix(cells: int, length: int) -> Tensor:
    """(S, length) means over cells that cover an axis and overlap where they must.

    Cell i reaches from floor(i * length / S) to ceil((i + 1) * length / S), as in torch's
    adaptive average pooling.
    """
    matrix = torch.zeros(cells, length)
    for cell in range(cells):
        start, end = cell * length // cells, -(-(cell + 1) * length // cells)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix


class PooledContext(nn.Module):
    """Means over an S x S grid, a convolution block, and back to the size: (B, D, h, w) to C."""

    rows: Tensor
    columns: Tensor

    def __init__(
        self, cells: int, size: tuple[int, int], width: int, channels: int, norm: PixelNorm
    ) -> None:
        super().__init__()
        self.register_buffer("rows", pooling_matrix(cells, size[0]), persistent=False)
        self.register_buffer("columns", pooling_matrix(cells, size[1]), persistent=False)
        self.convolution = ConvolutionBlock(width, channels, 1, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Pool, convolve, resize."""
        rows, columns = self.rows.to(features.dtype), self.columns.to(features.dtype)
        pooled = rows @ features @ columns.T
        return resized(self.convolution(pooled), (features.shape[2], features.shape[3]))


class UPerNet(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down pyramid, all joined and classified.

    The maps are not normalised before, as in the reference and in transformers: nothing of the
    encoder's final LayerNorm is here. Logits come at the size of the finest map.

    Args:
        config: Of kind `upernet`.
        width: Features of the maps.
        grid: (h, w) of the maps before they are rescaled.

    Raises:
        UserError: The grid is too small for the pyramid.
    """

    def __init__(self, config: DecoderConfig, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        channels, norm = config.channels, config.norm
        if min(grid) * min(config.pyramid) < 1:
            raise UserError(
                f"a grid of {grid[0]}x{grid[1]} patches cannot be reduced by "
                f"{min(config.pyramid)}; take larger pictures or another pyramid"
            )
        coarsest = int(grid[0] * config.pyramid[-1]), int(grid[1] * config.pyramid[-1])
        finer = range(len(config.pyramid) - 1)
        self.pyramid = nn.ModuleList(rescaler(scale, width, norm) for scale in config.pyramid)
        self.contexts = nn.ModuleList(
            PooledContext(cells, coarsest, width, channels, norm) for cells in config.pooling
        )
        gathered = width + len(config.pooling) * channels
        self.context_fusion = ConvolutionBlock(gathered, channels, 3, norm)
        self.laterals = nn.ModuleList(ConvolutionBlock(width, channels, 1, norm) for _ in finer)
        self.smoothings = nn.ModuleList(
            ConvolutionBlock(channels, channels, 3, norm) for _ in finer
        )
        self.fusion = ConvolutionBlock(len(config.pyramid) * channels, channels, 3, norm)
        self.classifier = PixelClassifier(channels, config.classes, config.dropout)

    def rescaled(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid: each layer's (B, D, h, w) map at its own size, finest first."""
        return [rescale(tokens) for rescale, tokens in zip(self.pyramid, maps, strict=True)]

    def forward(self, features: Sequence[Tensor], draws: Tensor | None = None) -> Tensor:
        """Decode a pyramid to (B, K, h', w') logits."""
        levels = [
            lateral(finer) for lateral, finer in zip(self.laterals, features[:-1], strict=True)
        ]
        contexts = [context(features[-1]) for context in self.contexts]
        levels.append(self.context_fusion(torch.cat([features[-1], *contexts], 1)))
        for number in range(len(levels) - 1, 0, -1):  # from coarse to fine
            finer = levels[number - 1]
            levels[number - 1] = finer + resized(levels[number], _size(finer))
        smooth = [block(level) for block, level in zip(self.smoothings, levels[:-1], strict=True)]
        joined = [resized(level, _size(smooth[0])) for level in (*smooth[1:], levels[-1])]
        return self.classifier(self.fusion(torch.cat([smooth[0], *joined], 1)), draws)  # type: ignore[no-any-return]


def _size(features: Tensor) -> tuple[int, int]:
    return features.shape[2], features.shape[3]
