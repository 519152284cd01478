"""The reference's pre-training model and step, derived again in plain eager torch.

Its released code runs on nothing current. What costs time is written as it is there: explicit
attention scores, the shared bias gathered as a permuted table, the masked places picked by boolean
indexing after the last LayerNorm over all tokens, contiguous (not channels-last) convolutions in
the tokenizer, logits of every code at every place, and several looks at the device each step.
Parameters carry the reference's names, so that `beit.interop.names.REFERENCE` translates them.
"""

# B images, N patches, T = N + 1 tokens, D width, H heads, K codes

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.nn.config import EncoderConfig
from beit.nn.position import relative_position_index, relative_table_rows
from beit.tokenizer.dvae import DiscreteVAE, ResidualBlock, scaled_pixels

_EPSILON = 1e-6


class ReferenceAttention(nn.Module):
    """Scores, softmax and mixing, each a tensor of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        batch, count, width = tokens.shape
        zeros = torch.zeros_like(self.v_bias, requires_grad=False)
        qkv = functional.linear(
            tokens, self.qkv.weight, torch.cat((self.q_bias, zeros, self.v_bias))
        )
        query, key, value = qkv.reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query = query * (width // self.heads) ** -0.5
        scores = query @ key.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        mixed = scores.softmax(dim=-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, -1))  # type: ignore[no-any-return]


class ReferenceMlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.fc2(functional.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]


class ReferenceBlock(nn.Module):
    """Pre-norm, LayerScale where there is one."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.attn = ReferenceAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.mlp = ReferenceMlp(config.width, config.hidden)
        scaled = config.layer_scale is not None
        self.gamma_1 = nn.Parameter(torch.ones(config.width)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.ones(config.width)) if scaled else None

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        if self.gamma_1 is None or self.gamma_2 is None:
            tokens = tokens + self.attn(self.norm1(tokens), bias)
            return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]
        tokens = tokens + self.gamma_1 * self.attn(self.norm1(tokens), bias)
        return tokens + self.gamma_2 * self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]


class ReferenceBias(nn.Module):
    """One table for all blocks, gathered once a forward pass."""

    relative_position_index: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        rows = relative_table_rows(config.grid)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, config.heads))
        index = relative_position_index(config.grid)
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self) -> Tensor:
        """(H, T, T)."""
        index = self.relative_position_index
        rows = self.relative_position_bias_table[index.view(-1)]
        return rows.view(*index.shape, -1).permute(2, 0, 1).contiguous()


class ReferenceModel(nn.Module):
    """The masked-image model: a masked picture to logits at the masked places."""

    def __init__(self, config: EncoderConfig, vocabulary: int) -> None:
        super().__init__()
        assert config.relative_positions in ("none", "shared"), config.relative_positions
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(config.channels, config.width, config.patch_size, config.patch_size)}
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        shape = (1, 1 + config.patches, config.width)
        absolute = config.absolute_positions
        self.pos_embed = nn.Parameter(torch.zeros(shape)) if absolute else None
        shared = config.relative_positions == "shared"
        self.rel_pos_bias = ReferenceBias(config) if shared else None
        self.blocks = nn.ModuleList(ReferenceBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_EPSILON)
        self.lm_head = nn.Linear(config.width, vocabulary)

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """(B, 3, H, W) images and (B, N) bool to (number of masked places, K)."""
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        batch, count, _ = patches.shape
        mask_tokens = self.mask_token.expand(batch, count, -1)
        share = masked.unsqueeze(-1).type_as(mask_tokens)
        patches = patches * (1 - share) + mask_tokens * share
        tokens = torch.cat((self.cls_token.expand(batch, -1, -1), patches), dim=1)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        for block in self.blocks:
            tokens = block(tokens, bias)
        return self.lm_head(self.norm(tokens)[:, 1:][masked])  # type: ignore[no-any-return]


class ReferenceTokenizer:
    """DALL-E's encoder as its package runs it: float32 on a CPU, float16 on CUDA but the output.

    On CUDA every convolution casts its weights anew, as there. Memory is contiguous.
    """

    def __init__(self, vae: DiscreteVAE) -> None:
        self.vae = vae
        self.layers = list(vae.encoder)

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, h, w) int64."""
        hidden = scaled_pixels(images, self.vae.config).contiguous()
        half = images.is_cuda
        with torch.autocast(images.device.type, enabled=False):
            for layer in self.layers:
                hidden = _run(layer, hidden, half)
            head = self.vae.head
            logits = functional.conv2d(hidden.float(), head.weight.contiguous(), head.bias)
            return logits.argmax(1)


def _run(layer: nn.Module, hidden: Tensor, half: bool) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        dtype = torch.float16 if half else torch.float32
        bias = None if layer.bias is None else layer.bias.to(dtype)
        weight = layer.weight.to(dtype).contiguous()
        padding = layer.padding
        return functional.conv2d(hidden.to(dtype), weight, bias, layer.stride, padding)
    if isinstance(layer, ResidualBlock):
        residual = hidden
        for convolution in layer.path:
            residual = _run(convolution, functional.relu(residual), half)
        return _run(layer.identity, hidden, half) + layer.gain * residual
    outcome: Tensor = layer(hidden)
    return outcome


def reference_step(
    model: ReferenceModel,
    tokenizer: ReferenceTokenizer,
    images: Tensor,
    token_images: Tensor,
    masked: Tensor,
    clip: float = 3.0,
) -> Callable[[], None]:
    """Its step, to be called: float32 on a CPU, float16 with a loss scale on CUDA.

    Args:
        model: What is trained.
        tokenizer: Makes the labels.
        images: (B, 3, H, W) normalised.
        token_images: (B, 3, H', W') in [0, 1].
        masked: (B, N) bool.
        clip: Largest norm of the gradient.
    """
    cuda = images.is_cuda
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-5)
    scaler = torch.amp.GradScaler(enabled=cuda)  # type: ignore[attr-defined]

    def once() -> None:
        labels = tokenizer.codes(token_images).flatten(1)[masked]
        with torch.autocast(images.device.type, torch.float16, enabled=cuda):
            logits = model(images, masked)
            loss = functional.cross_entropy(logits, labels)
        assert math.isfinite(loss.item())
        optimiser.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimiser)
        scaler.update()
        if cuda:
            torch.cuda.synchronize()
        (logits.max(-1)[1] == labels).float().mean().item()

    return once
