"""Self-attention with query and value biases and an optional learned bias on the scores."""

# B images, T tokens, D width, H heads, d = D / H

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def attention_probabilities(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax of the scaled scores, written out.

    Args:
        query: (B, H, T, d).
        key: (B, H, T, d).
        bias: (H, T, T) added to the scores, or None.

    Returns:
        (B, H, T, T); each row sums to one.
    """
    query = query * query.shape[-1] ** -0.5
    scores = query @ key.transpose(-2, -1)
    return (scores if bias is None else scores + bias.to(scores.dtype)).softmax(dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Mix the values by attention: (B, H, T, d); arguments as in `attention_probabilities`.

    The one place where the kernel is chosen. On a CPU in bfloat16 the written-out form is clearly
    faster than torch's kernel, forward and backward, with a bias and without; everywhere else
    torch's kernel keeps the scores out of memory.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return attention_probabilities(query, key, bias).to(value.dtype) @ value
    if bias is not None:
        bias = (
            _aligned(bias.to(query.dtype)) if query.device.type == "cuda" else bias.to(query.dtype)
        )
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _aligned(bias: Tensor) -> Tensor:
    """The same bias in rows of a multiple of 8 numbers, as CUDA's memory-efficient kernel wants."""
    tokens = bias.shape[-1]
    return functional.pad(bias, (0, -tokens % 8))[..., :tokens]


class Attention(nn.Module):
    """Multi-head self-attention.

    The projection to queries, keys and values has learned biases for queries and values only: a
    bias on the keys moves all scores of a query alike, which the softmax does not see.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend: (B, T, D) tokens and an optional (H, T, T) bias to (B, T, D)."""
        mixed: Tensor = attend(*self._project(tokens), bias)  # (B, H, T, d)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def probabilities(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """The attention maps of the same projection: (B, H, T, T)."""
        query, key, _ = self._project(tokens)
        return attention_probabilities(query, key, bias)

    def _project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key_bias = torch.zeros_like(self.query_bias)
        bias = torch.cat((self.query_bias, key_bias, self.value_bias))
        qkv = functional.linear(tokens, self.qkv.weight, bias)  # (B, T, 3 D)
        split = qkv.reshape(*tokens.shape[:2], 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, d) each
        return query, key, value
