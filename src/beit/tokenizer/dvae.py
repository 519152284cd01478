"""The discrete VAE: pictures to code logits, codes to pictures.

Legend: B images, (H, W) pixels, (h, w) grid of codes, K codes.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.tokenizer.config import DiscreteVAEConfig
from beit.tokenizer.precision import exact

VARIANCE_SPEED = 30.0  # Adam moves a parameter by about its rate a step, too slow for this one
LOGIT_LAPLACE_EPSILON = 0.1  # pixels are squeezed into [0.1, 0.9]: their logits stay finite


def map_pixels(images: Tensor) -> Tensor:
    """Squeeze [0, 1] into [0.1, 0.9] (arXiv:2102.12092, A.3)."""
    return (1 - 2 * LOGIT_LAPLACE_EPSILON) * images + LOGIT_LAPLACE_EPSILON


def unmap_pixels(mapped: Tensor) -> Tensor:
    """Undo `map_pixels`, clamped to [0, 1]."""
    return ((mapped - LOGIT_LAPLACE_EPSILON) / (1 - 2 * LOGIT_LAPLACE_EPSILON)).clamp(0, 1)


def scaled_pixels(images: Tensor, config: DiscreteVAEConfig) -> Tensor:
    """What the encoder is fed: (B, 3, H, W) in [0, 1] as the likelihood wants them."""
    return map_pixels(images) if config.likelihood == "logit-laplace" else 2 * images - 1


def _precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Autocast to `dtype`, or float32 for None; nothing to do on the meta device."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class ResidualBlock(nn.Module):
    """Identity plus a small constant times a path of ReLU and convolution, ReLU first."""

    def __init__(
        self, inputs: int, outputs: int, hidden: int, kernels: tuple[int, ...], gain: float
    ) -> None:
        super().__init__()
        widths = (inputs, *(hidden,) * (len(kernels) - 1), outputs)
        self.gain = gain
        self.identity = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.path = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2)
            for i, kernel in enumerate(kernels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h, w)."""
        residual = features
        for convolution in self.path:
            residual = convolution(functional.relu(residual))
        identity: Tensor = self.identity(features)
        return identity + self.gain * residual


class Layers(nn.Sequential):
    """Layers in turn.

    A class of our own, because torch compiles nothing at the call of its own containers: each block
    would be a graph, and DALL-E's has more of them than torch compiles of one function.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, h, w)."""
        for layer in self:
            features = layer(features)
        return features


def _encoder(config: DiscreteVAEConfig) -> Layers:
    """Stem and groups, (B, 3, H, W) to (B, last width, h, w)."""
    widths = config.encoder_widths
    padding = (config.stem_kernel - config.stem_stride) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(3, widths[0], config.stem_kernel, config.stem_stride, padding)
    ]
    width = widths[0]
    for group, (wanted, blocks) in enumerate(zip(widths, config.encoder_blocks, strict=True)):
        if group and config.downsampling == "max-pool":
            layers.append(nn.MaxPool2d(2))
        elif group:
            layers.append(nn.Conv2d(width, wanted, 2, stride=2))
            width = wanted
        for _ in range(blocks):
            hidden = wanted // config.bottleneck
            layers.append(
                ResidualBlock(width, wanted, hidden, config.encoder_kernels, config.encoder_gain)
            )
            width = wanted
    return Layers(*layers, nn.ReLU())


def _decoder(config: DiscreteVAEConfig) -> Layers:
    """Groups and output convolution, (B, embedding width, h, w) to (B, output channels, H, W)."""
    layers: list[nn.Module] = []
    width = config.embedding_width
    for group, (wanted, blocks) in enumerate(
        zip(config.decoder_widths, config.decoder_blocks, strict=True)
    ):
        if group:
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        for _ in range(blocks):
            hidden = wanted // config.bottleneck
            layers.append(
                ResidualBlock(width, wanted, hidden, config.decoder_kernels, config.decoder_gain)
            )
            width = wanted
    shuffle = config.output_shuffle
    layers.append(nn.ReLU())
    layers.append(
        nn.Conv2d(
            width,
            config.output_channels * shuffle**2,
            config.output_kernel,
            padding=config.output_kernel // 2,
        )
    )
    if shuffle > 1:
        layers.append(nn.PixelShuffle(shuffle))
    return Layers(*layers)


class DiscreteVAE(nn.Module):
    """A discrete VAE: q(z|x) as an independent categorical at every place, and p(x|z).

    Its tokens are the most likely codes without noise (arXiv:2106.08254, section 2.1.2).
    """

    slow_log_variance: Tensor

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        last = config.encoder_widths[-1]
        self.encoder = _encoder(config)
        cosine = config.head == "cosine"
        self.head = nn.Conv2d(last, config.code_width if cosine else config.vocabulary, 1)
        if cosine:
            self.code_vectors = nn.Parameter(torch.empty(config.vocabulary, config.code_width))
        shared = config.decoder_input == "shared"
        self.embedding = nn.Conv2d(
            config.code_width if shared else config.vocabulary, config.embedding_width, 1
        )
        self.decoder = _decoder(config)
        log_variance = torch.tensor(math.log(config.gaussian_variance or 0.05) / VARIANCE_SPEED)
        if config.likelihood == "gaussian" and config.gaussian_variance is None:
            self.slow_log_variance = nn.Parameter(log_variance)
        else:
            self.register_buffer("slow_log_variance", log_variance, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight from a normal of variance 1 / fan-in, biases 0; unit-norm codes."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=fan_in**-0.5)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        if self.config.head == "cosine":
            nn.init.normal_(self.code_vectors, std=self.config.code_width**-0.5)
        if self.config.decoder_input == "separate":
            # Its input is close to one-hot, so one weight alone reaches an output: no fan-in.
            nn.init.normal_(self.embedding.weight, std=1.0)

    @property
    def log_variance(self) -> Tensor:
        """The Gaussian likelihood's log-variance on the [0, 1] pixel scale, 0-d."""
        return VARIANCE_SPEED * self.slow_log_variance

    @property
    def vocabulary(self) -> int:
        """How many codes there are, K."""
        return self.config.vocabulary

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.config.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the grid of codes."""
        return self.config.grid

    def undecayed_parameters(self) -> frozenset[str]:
        """Names of parameters without weight decay: the codes count by their direction alone."""
        names = {"code_vectors", "slow_log_variance"}
        return frozenset(name for name, _ in self.named_parameters() if name in names)

    def code_directions(self) -> Tensor:
        """The cosine head's codes at unit length, (K, code width) float32."""
        return functional.normalize(self.code_vectors.float(), dim=1)

    def hidden(self, images: Tensor) -> Tensor:
        """What the head reads: (B, 3, H, W) pictures to (B, last width, h, w)."""
        scaled = scaled_pixels(images, self.config)
        hidden: Tensor = self.encoder(scaled.contiguous(memory_format=torch.channels_last))
        return hidden

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log q(z|x) of (B, 3, H, W) floats in [0, 1]: (B, K, h, w) float32."""
        return self.logits_of(self.hidden(images))

    def logits_of(self, hidden: Tensor) -> Tensor:
        """The logits of what `hidden` gave, or of some of its places: (B, K, h, w) float32."""
        projected: Tensor = self.head(hidden)
        return self.logits_of_projected(projected.float())

    def logits_of_projected(self, features: Tensor) -> Tensor:
        """The logits of what the head gave, float32: (B, head's channels, h, w) to (B, K, h, w)."""
        if self.config.head == "linear":
            return features
        with _precision(features.device, None):
            directions = functional.normalize(features, dim=1).movedim(1, -1)
            scaled = self.config.cosine_scale * self.code_directions()
            return functional.linear(directions, scaled).movedim(-1, 1)

    @torch.no_grad()
    def codes(self, images: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """The most likely code at every place.

        Args:
            images: (B, 3, H, W) floats in [0, 1].
            dtype: Compute in this type by autocast (torch.bfloat16 is cheaper); None is float32,
                also inside somebody else's autocast and without TF32, so that a picture's codes do
                not depend on who asks.

        Returns:
            (B, h, w) int64.
        """
        wanted = exact(images.device) if dtype is None else _precision(images.device, dtype)
        with wanted:
            return self.logits(images).argmax(1)

    def decode(self, weights: Tensor) -> Tensor:
        """Decode (B, K, h, w) weights over the codes to (B, output channels, H, W) float32."""
        if self.config.decoder_input == "shared":
            weights = functional.linear(weights.movedim(1, -1), self.code_directions().T)
            weights = weights.movedim(-1, 1)
        return self._decode_embedded(self.embedding(weights))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode (B, h, w) codes to output channels: as `decode` of their one-hot weights."""
        if self.config.decoder_input == "shared":
            embedded = self.embedding(self.code_directions()[codes].movedim(-1, 1))
        else:
            table = self.embedding.weight[:, :, 0, 0].T  # (K, embedding width)
            bias = self.embedding.bias
            assert bias is not None
            embedded = table[codes].permute(0, 3, 1, 2) + bias[:, None, None]
        return self._decode_embedded(embedded)

    def mean_pixels(self, outputs: Tensor) -> Tensor:
        """The picture in [0, 1] that `decode`'s output channels stand for: (B, 3, H, W)."""
        if self.config.likelihood == "logit-laplace":
            return unmap_pixels(outputs[:, :3].sigmoid())
        return outputs.clamp(0, 1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Pictures through their own codes: (B, 3, H, W) in [0, 1] to the same."""
        return self.mean_pixels(self.decode_codes(self.codes(images)))

    def _decode_embedded(self, embedded: Tensor) -> Tensor:
        outputs: Tensor = self.decoder(embedded.contiguous(memory_format=torch.channels_last))
        outputs = outputs.float()
        if self.config.likelihood == "gaussian":
            return outputs + 0.5  # start at mid grey
        return outputs
