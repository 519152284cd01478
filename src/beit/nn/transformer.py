"""The Transformer block: pre-norm, LayerScale, stochastic depth by drawn numbers."""

# B images, T tokens, D width, H heads, L depth, R places read

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.nn.attention import Attention, scaled_linear
from beit.nn.config import EncoderConfig
from beit.nn.position import relative_table_rows

NORM_EPSILON = 1e-6


class Mlp(nn.Module):
    """Linear, GELU, linear, dropout (after the second layer only)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        """(B, T, D) to (B, T, D), each feature times its (D,) scale, if any."""
        hidden = functional.gelu(self.expand(tokens))
        return self.dropout(scaled_linear(hidden, self.contract, scale))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + scale * gamma * f(LayerNorm(x)) twice: f is attention, then the MLP."""

    attention_scale: nn.Parameter | None
    mlp_scale: nn.Parameter | None
    bias_table: nn.Parameter | None

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.attention = Attention(config.width, config.heads)
        self.mlp_norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.mlp = Mlp(config.width, config.hidden, config.dropout)
        for name in ("attention_scale", "mlp_scale"):
            scaled = config.layer_scale is not None
            self.register_parameter(
                name, nn.Parameter(torch.empty(config.width)) if scaled else None
            )
        per_layer = config.relative_positions == "per-layer"
        table = torch.zeros(relative_table_rows(config.grid), config.heads) if per_layer else None
        self.bias_table = None if table is None else nn.Parameter(table)

    def forward(
        self,
        tokens: Tensor,
        bias: Tensor | None = None,
        branch_scales: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Transform tokens.

        Args:
            tokens: (B, T, D).
            bias: (H, T, T) added to the attention scores.
            branch_scales: (B, 2) factors on the two residual branches (see `branch_scales`).
            read: (B, R) the only places whose result is wanted. All tokens are attended to; the
                MLP, which treats tokens singly, runs on these alone.

        Returns:
            (B, T, D), or (B, R, D) at the places read.
        """
        attended = self.attention(self.attention_norm(tokens), bias, self.attention_scale)
        tokens = tokens + _kept(attended, branch_scales, 0)
        if read is not None:
            tokens = tokens.gather(1, read.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        transformed = self.mlp(self.mlp_norm(tokens), self.mlp_scale)
        return tokens + _kept(transformed, branch_scales, 1)

    def attention_maps(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """The attention probabilities (B, H, T, T) this block uses on the tokens."""
        return self.attention.probabilities(self.attention_norm(tokens), bias)


def _kept(branch: Tensor, branch_scales: Tensor | None, column: int) -> Tensor:
    return branch if branch_scales is None else branch * branch_scales[:, column, None, None]


def drop_path_rates(drop_path: float, depth: int) -> Tensor:
    """Probability of dropping each residual branch: (2 L,), linear from 0 to drop_path."""
    return torch.linspace(0, drop_path, depth).repeat_interleave(2)


def branch_scales(path_draws: Tensor, rates: Tensor) -> Tensor:
    """Factors of stochastic depth (arXiv:1603.09382): 0 or 1 / (1 - rate).

    Args:
        path_draws: (B, 2 L) uniform in [0, 1); a branch is dropped where the draw is below its
            rate. Chance is thus a function of the sample, not of its place in a batch.
        rates: (2 L,) from `drop_path_rates`.
    """
    return (path_draws >= rates).to(rates.dtype) / (1 - rates)
