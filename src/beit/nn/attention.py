"""Self-attention with query and value biases and an optional learned bias on the scores."""

# B images, T tokens, D width, H heads, d = D / H

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.nn.fused_attention import fused_attention, is_leaving, is_made_for


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
    if bias is not None:
        scores += bias.to(scores.dtype)
    return scores.softmax(dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Mix the values by attention: (B, H, T, d); arguments as in `attention_probabilities`.

    torch's kernels for a CPU are slower than the products written out where there is a bias, which
    they cannot learn, or where numbers are bfloat16. Nowhere are the scores kept for the backward
    pass. The products written out have second derivatives, torch's kernels only under
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """
    if bias is not None:
        bias = bias.to(query.dtype)
    # An exported graph may go to another device: it names torch's kernel.
    on_cpu = query.device.type == "cpu" and not is_leaving()
    if on_cpu and (bias is not None or query.dtype == torch.bfloat16):
        mixed: Tensor = RecomputedAttention.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
        return mixed
    if bias is not None and query.device.type == "cuda":
        bias = _aligned(bias)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def attend_projected(projected: Tensor, bias: Tensor | None) -> Tensor:
    """Mix the values by attention, by the fastest kernel for the device and the shapes.

    Args:
        projected: (B, T, 3, H, d) queries, keys and values.
        bias: (H, T, T) added to the scores, or None.

    Returns:
        (B, T, H, d).
    """
    # Without a bias torch has a fast kernel.
    if bias is not None and is_made_for(projected):
        return fused_attention(projected, bias)
    return attend(*split_projected(projected), bias).transpose(1, 2)


def split_projected(projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of (B, T, 3, H, d): queries, keys and values, (B, H, T, d) each."""
    query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


class RecomputedAttention(torch.autograd.Function):
    """Attention by products written out, whose probabilities are computed again going back.

    Autograd would keep (B, H, T, T) probabilities: a sixth of a base model's memory. Computing
    them twice is one product in six more, of a part that is a twentieth of a step.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Mix the values; arguments as in `attend`, all of one type."""
        ctx.save_for_backward(query, key, value, bias)
        with torch.autocast(query.device.type, enabled=False):  # as it is in `backward`
            return attention_probabilities(query, key, bias) @ value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The gradients of query, key, value and bias; made so that they have gradients again."""
        query, key, value, bias = ctx.saved_tensors
        # Strided views of one projection: each product would copy them anew.
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        probabilities = attention_probabilities(query, key, bias)
        of_value = probabilities.transpose(-2, -1) @ gradient
        of_scores = torch._softmax_backward_data(
            gradient @ value.transpose(-2, -1), probabilities, -1, probabilities.dtype
        )
        of_bias = of_scores.sum(0) if ctx.needs_input_grad[3] else None
        of_scores *= query.shape[-1] ** -0.5
        return of_scores @ key, of_scores.transpose(-2, -1) @ query, of_value, of_bias


def _aligned(bias: Tensor) -> Tensor:
    """The same bias in rows of a multiple of 8 numbers, as CUDA's memory-efficient kernel wants."""
    tokens = bias.shape[-1]
    return functional.pad(bias, (0, -tokens % 8))[..., :tokens]


def is_plain(linear: nn.Module) -> bool:
    """Whether calling a layer is its product and nothing else: no adapter's, no hook of anybody's.

    Only then may its weights be used in another way: what was put there would not be asked.
    """
    hooks = (linear._forward_hooks, linear._forward_pre_hooks)
    back = (linear._backward_hooks, linear._backward_pre_hooks)
    return type(linear) is nn.Linear and not any(map(len, (*hooks, *back)))


def scaled_linear(values: Tensor, linear: nn.Linear, scale: Tensor | None) -> Tensor:
    """The layer's result times a factor a feature: (..., D) to (..., D'); `scale` is (D',) or None.

    The factors multiply the weights instead of the result. That is the same, and spares a pass over
    the result and keeping it for the gradient of the factors.
    """
    if scale is None:
        return linear(values)  # type: ignore[no-any-return]
    if not is_plain(linear):
        return linear(values) * scale  # type: ignore[no-any-return]
    weight, bias = scale.unsqueeze(1) * linear.weight, scale * linear.bias
    return functional.linear(values, weight, bias)


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

    def forward(
        self, tokens: Tensor, bias: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            tokens: (B, T, D).
            bias: (H, T, T) added to the scores.
            scale: (D,) factors on the features of the result (LayerScale).

        Returns:
            (B, T, D).
        """
        mixed = attend_projected(self._project(tokens), bias)  # (B, T, H, d)
        return scaled_linear(mixed.flatten(2), self.output, scale)

    def probabilities(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """The attention maps of the same projection: (B, H, T, T)."""
        query, key, _ = split_projected(self._project(tokens))
        return attention_probabilities(query, key, bias)

    def _project(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, T, 3, H, d) queries, keys and values."""
        key_bias = torch.zeros_like(self.query_bias)
        bias = torch.cat((self.query_bias, key_bias, self.value_bias))
        # As the layer's own bias, which spares a pass over the result.
        plain = is_plain(self.qkv)
        qkv = functional.linear(tokens, self.qkv.weight, bias) if plain else self.qkv(tokens) + bias
        return qkv.view(*qkv.shape[:2], 3, self.heads, -1)
