"""An encoder with a decoder on top: a class for each pixel (section 2.6 of the paper)."""

# B images, D width, L depth, K classes, (h, w) patch grid

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from beit.errors import UserError
from beit.nn.batch_norm import ranks
from beit.nn.decoder_config import DecoderConfig
from beit.nn.decoders import ConvolutionalHead, ProgressiveUpsampling
from beit.nn.encoder import Encoder
from beit.nn.initialisation import initialise_decoder_
from beit.nn.own_decoder import OURS, OwnDecoder, made
from beit.nn.upernet import UPerNet

__all__ = ["DecoderConfig", "Segmenter", "SegmenterOutput", "build_segmenter"]


Decoder = ProgressiveUpsampling | UPerNet | OwnDecoder


class SegmenterOutput(NamedTuple):
    """Logits at the decoder's own sizes; whoever wants pixels resizes them bilinearly."""

    logits: Tensor  # (B, K, h', w')
    auxiliary: Tensor | None  # (B, K, h'', w''), None without an auxiliary head


class Segmenter(nn.Module):
    """Pictures to logits over classes at each place. Use `build_segmenter` to make one.

    Args:
        encoder: Fresh, or pre-trained.
        config: What the decoder is made of.
        decoder: Reads the named layers.
        auxiliary: Reads the last but one of the decoder's maps; None leaves it out.
        labels: What the classes are called, in the order of the logits; empty when not known.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: DecoderConfig,
        decoder: Decoder,
        auxiliary: ConvolutionalHead | None,
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.decoder = decoder
        self.auxiliary = auxiliary
        self.labels = tuple(labels)
        assert len(self.labels) in (0, config.classes), (len(self.labels), config.classes)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.config.classes

    @property
    def channel_draws(self) -> int:
        """How many draws a picture its dropout needs: the decoder's first, then the auxiliary's."""
        return self.config.channels + self.config.auxiliary_channels * self.config.auxiliary

    def forward(
        self,
        images: Tensor,
        path_draws: Tensor | None = None,
        channel_draws: Tensor | None = None,
    ) -> SegmenterOutput:
        """Segment.

        Args:
            images: (B, 3, H, W) normalised floats of the encoder's size.
            path_draws: (B, 2 L) draws that decide stochastic depth; see `Encoder.forward`.
            channel_draws: (B, `channel_draws`) uniform draws that decide the decoders' dropout;
                None while training draws them from the default generator.

        Raises:
            UserError: A single picture is to train batch norms.
        """
        if self.training and self.config.norm == "batch" and len(images) * ranks() < 2:
            raise UserError(
                "batch norm cannot train on a micro-batch of one picture; "
                "give it two or more, or choose the norm group"
            )
        layers = self.config.layers
        read = self.encoder(images, layers=layers, path_draws=path_draws, until=max(layers))
        grid = self.encoder.config.grid
        maps = [
            tokens[:, 1:].transpose(1, 2).reshape(images.shape[0], -1, *grid)
            for tokens in read.layers
        ]
        features = self.decoder.rescaled(maps)
        own = other = None
        if channel_draws is not None:
            own, other = channel_draws.tensor_split([self.config.channels], 1)
        logits = self.decoder(features, own)
        if self.auxiliary is None:
            return SegmenterOutput(logits, None)
        return SegmenterOutput(logits, self.auxiliary(features[-2], other))

    def unread_parameters(self) -> frozenset[str]:
        """Names of what no logit depends on: the mask embedding, and blocks after the last read."""
        after = range(max(self.config.layers) + 1, self.encoder.config.depth)
        prefixes = tuple(f"encoder.blocks.{number}." for number in after)
        return frozenset(
            name
            for name, _ in self.named_parameters()
            if name == "encoder.embeddings.mask_embedding" or name.startswith(prefixes)
        )


def build_segmenter(
    encoder: Encoder, config: DecoderConfig, labels: Sequence[str] = ()
) -> Segmenter:
    """Put a fresh decoder on an encoder; one's own (`beit.nn.own_decoder`) is made by its maker.

    Args:
        encoder: Kept as it is, not copied.
        config: What the decoder is made of.
        labels: What the classes are called, where known.

    Raises:
        UserError: The decoder reads layers that the encoder has not, or a grid that is too small.
    """
    depth, width = encoder.config.depth, encoder.config.width
    if max(config.layers) >= depth:
        raise UserError(
            f"the decoder reads layer {max(config.layers)}, and this encoder has 0 to {depth - 1}"
        )
    decoder: Decoder
    if config.kind not in OURS:
        decoder = made(config.kind, config.classes, config, encoder.config)
    elif config.kind == "pup":
        decoder = ProgressiveUpsampling(config, width, encoder.config.patch_size)
    else:
        decoder = UPerNet(config, width, encoder.config.grid)
    auxiliary = ConvolutionalHead(config, width) if config.auxiliary else None
    for part in (decoder, auxiliary):
        if part is not None and not isinstance(part, OwnDecoder):  # which has weights of its own
            initialise_decoder_(part)
    return Segmenter(encoder, config, decoder, auxiliary, labels)
