"""Work of a discrete VAE, counted from its shape: 1 multiply-add = 2 FLOP."""

# K codes, (h, w) grid of codes, C channels

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from beit.tokenizer.config import DiscreteVAEConfig


class TokenizerWork(NamedTuple):
    """Forward FLOP a picture, by part; additions, ReLU, pooling and softmax are not counted."""

    stem: int
    groups: tuple[int, ...]  # of the encoder, from fine to coarse, with the halvings before them
    head: int  # the output layer: K logits a place
    decoder: int  # with the embedding of the codes

    @property
    def reading(self) -> int:
        """What codes cost: stem, groups and head."""
        return self.stem + sum(self.groups) + self.head

    @property
    def forward(self) -> int:
        """There and back: a picture to codes, and these to a picture."""
        return self.reading + self.decoder

    @property
    def training(self) -> int:
        """Forward and backward: twice more, except that pictures need no gradient."""
        return 3 * self.forward - self.stem


def count_tokenizer_work(
    config: DiscreteVAEConfig, grid: tuple[int, int] | None = None, places: int | None = None
) -> TokenizerWork:
    """FLOP a picture, by part.

    Args:
        config: The discrete VAE.
        grid: Codes (height, width) of the picture; the configuration's own by default.
        places: Where the output layer is computed; everywhere by default.
    """
    height, width = config.grid if grid is None else grid
    codes = height * width
    wanted = codes if places is None else places
    groups, levels = config.encoder_widths, len(config.encoder_widths)
    finest = codes << 2 * (levels - 1)  # places behind the stem
    head = config.code_width if config.head == "cosine" else config.vocabulary
    cosines = config.code_width * config.vocabulary if config.head == "cosine" else 0
    return TokenizerWork(
        stem=2 * finest * config.stem_kernel**2 * 3 * groups[0],
        groups=tuple(2 * finest * work >> 2 * g for g, work in enumerate(_encoder_weights(config))),
        head=2 * wanted * (groups[-1] * head + cosines),
        decoder=2 * codes * _decoder_weights(config),
    )


def _encoder_weights(config: DiscreteVAEConfig) -> list[int]:
    """Multiplications a place of each group; the halving before it counts at its own places."""
    found, width = [], config.encoder_widths[0]
    for group, (wanted, blocks) in enumerate(
        zip(config.encoder_widths, config.encoder_blocks, strict=True)
    ):
        weights = 0
        if group and config.downsampling == "strided":
            weights, width = 4 * width * wanted, wanted
        weights += _blocks(width, wanted, blocks, config.bottleneck, config.encoder_kernels)
        width = wanted if blocks else width
        found.append(weights)
    return found


def _decoder_weights(config: DiscreteVAEConfig) -> int:
    """Multiplications a code of all that turns codes into a picture."""
    shared = config.decoder_input == "shared"
    read = config.code_width if shared else config.vocabulary
    weights = (config.vocabulary * config.code_width if shared else 0) + (
        read * config.embedding_width
    )
    width = config.embedding_width
    for group, (wanted, blocks) in enumerate(
        zip(config.decoder_widths, config.decoder_blocks, strict=True)
    ):
        here = _blocks(width, wanted, blocks, config.bottleneck, config.decoder_kernels)
        weights += here << 2 * group
        width = wanted if blocks else width
    output = width * config.output_channels * config.output_shuffle**2 * config.output_kernel**2
    return weights + (output << 2 * (len(config.decoder_widths) - 1))


def _blocks(width: int, wanted: int, blocks: int, bottleneck: int, kernels: Sequence[int]) -> int:
    """Multiplications a place of residual blocks in a row, the first of which may widen."""
    total, hidden = 0, wanted // bottleneck
    for _ in range(blocks):
        widths = (width, *(hidden,) * (len(kernels) - 1), wanted)
        pairs = zip(pairwise(widths), kernels, strict=True)
        total += sum(inputs * outputs * kernel**2 for (inputs, outputs), kernel in pairs)
        total += width * wanted if width != wanted else 0
        width = wanted
    return total


def count_working_memory(
    config: DiscreteVAEConfig, grid: tuple[int, int] | None = None, *, half: bool = False
) -> int:
    """Bytes a picture that reading codes takes for a while: three of the largest maps, or logits.

    Args:
        config: The discrete VAE.
        grid: Codes (height, width) of the picture; the configuration's own by default.
        half: Whether its convolutions run in half precision.
    """
    height, width = config.grid if grid is None else grid
    codes, levels = height * width, len(config.encoder_widths)
    maps = max(
        channels * (codes << 2 * (levels - 1 - level))
        for level, channels in enumerate(config.encoder_widths)
    )
    return max(3 * maps * (2 if half else 4), 2 * 4 * codes * config.vocabulary)
