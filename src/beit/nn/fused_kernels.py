"""Attention with a learned bias in two kernels, written in Triton; see `fused_attention`.

What torch has for CUDA reads the bias through a kernel of an older generation of cards. Sequences
of a picture are short: here one program holds all queries of a head while it goes through its keys,
so that going back every product is made once and no two programs add to the same gradient.
"""

# B images, T tokens, H heads, D features a head; numbers in (B, T, 3, H, D) memory; P a padded row

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(query, key, bias, pairs, own, there, scale, has_bias: tl.constexpr):
    """Base-2 logits of some queries for some keys, -inf where there is no key."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * LOG2_E)
    if has_bias:
        added = tl.load(bias + pairs, mask=own[:, None] & there[None, :], other=0.0)
        scores += added.to(tl.float32) * LOG2_E
    return tl.where(there[None, :], scores, float("-inf"))


@triton.jit
def _forward(
    projected,
    bias,
    mixed,
    normalisers,
    scale,
    tokens,
    row_stride,
    heads: tl.constexpr,
    features: tl.constexpr,
    has_bias: tl.constexpr,
    queries_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
):
    picture = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    rows = tl.program_id(1) * queries_at_once + tl.arange(0, queries_at_once)
    feature = tl.arange(0, features)
    step = 3 * heads * features  # from token to token
    start = projected + picture * tokens * step + head * features
    own = rows < tokens
    query = tl.load(start + rows[:, None] * step + feature[None, :], mask=own[:, None], other=0.0)
    largest = tl.full((queries_at_once,), float("-inf"), tl.float32)
    total = tl.zeros((queries_at_once,), tl.float32)
    sums = tl.zeros((queries_at_once, features), tl.float32)
    for first in range(0, tokens, keys_at_once):
        columns = first + tl.arange(0, keys_at_once)
        there = columns < tokens
        where = start + columns[:, None] * step + feature[None, :]
        key = tl.load(where + heads * features, mask=there[:, None], other=0.0)
        pairs = (head * tokens + rows[:, None]) * row_stride + columns[None, :]
        scores = _scores(query, key, bias, pairs, own, there, scale, has_bias)
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(where + 2 * heads * features, mask=there[:, None], other=0.0)
        sums = sums * shrink[:, None]
        sums += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        largest = larger
    place = mixed + (picture * tokens + rows[:, None]) * (heads * features) + head * features
    result = (sums / total[:, None]).to(mixed.dtype.element_ty)
    tl.store(place + feature[None, :], result, mask=own[:, None])
    tl.store(normalisers + tl.program_id(0) * tokens + rows, largest + tl.log2(total), mask=own)


@triton.jit
def _backward(
    projected,
    bias,
    mixed,
    normalisers,
    gradient,
    of_projected,
    of_scores,
    scale,
    tokens,
    row_stride,
    heads: tl.constexpr,
    features: tl.constexpr,
    has_bias: tl.constexpr,
    wants_bias: tl.constexpr,
    queries: tl.constexpr,
    keys_at_once: tl.constexpr,
):
    picture = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    rows = tl.arange(0, queries)
    own = rows < tokens
    feature = tl.arange(0, features)
    step = 3 * heads * features
    start = picture * tokens * step + head * features
    read = start + rows[:, None] * step + feature[None, :]
    query = tl.load(projected + read, mask=own[:, None], other=0.0)
    place = (picture * tokens + rows[:, None]) * (heads * features) + head * features + feature
    received = tl.load(gradient + place, mask=own[:, None], other=0.0)
    given = tl.load(mixed + place, mask=own[:, None], other=0.0)
    common = tl.sum(received.to(tl.float32) * given.to(tl.float32), 1)
    # Rows beyond the tokens: infinity makes all their probabilities 0.
    where = tl.program_id(0) * tokens + rows
    normaliser = tl.load(normalisers + where, mask=own, other=float("inf"))
    of_query = tl.zeros((queries, features), tl.float32)
    for first in range(0, tokens, keys_at_once):
        columns = first + tl.arange(0, keys_at_once)
        there = columns < tokens
        cells = start + columns[:, None] * step + feature[None, :]
        key_cells = cells + heads * features
        value_cells = cells + 2 * heads * features
        key = tl.load(projected + key_cells, mask=there[:, None], other=0.0)
        value = tl.load(projected + value_cells, mask=there[:, None], other=0.0)
        pairs = (head * tokens + rows[:, None]) * row_stride + columns[None, :]
        scores = _scores(query, key, bias, pairs, own, there, scale, has_bias)
        weights = tl.exp2(scores - normaliser[:, None])
        of_value = tl.dot(tl.trans(weights.to(received.dtype)), received, input_precision="ieee")
        of_value = of_value.to(of_projected.dtype.element_ty)
        tl.store(of_projected + value_cells, of_value, mask=there[:, None])
        of_weights = tl.dot(received, tl.trans(value), input_precision="ieee")
        change = (weights * (of_weights - common[:, None])).to(query.dtype)
        if wants_bias:
            line = (tl.program_id(0).to(tl.int64) * tokens + rows[:, None]) * row_stride
            tl.store(of_scores + line + columns, change, mask=own[:, None] & there[None, :])
        of_key = tl.dot(tl.trans(change), query, input_precision="ieee") * scale
        of_key = of_key.to(of_projected.dtype.element_ty)
        tl.store(of_projected + key_cells, of_key, mask=there[:, None])
        of_query += tl.dot(change, key, input_precision="ieee")
    result = (of_query * scale).to(of_projected.dtype.element_ty)
    tl.store(of_projected + read, result, mask=own[:, None])


def forward(projected: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mix the values.

    Args:
        projected: (B, T, 3, H, D) contiguous queries, keys and values.
        bias: (H, T, P) contiguous, P >= T, or None.

    Returns:
        (B, T, H, D), and the (B, H, T) float32 base-2 logarithms of each query's normaliser.
    """
    pictures, tokens, _, heads, features = projected.shape
    mixed = projected.new_empty(pictures, tokens, heads, features)
    normalisers = projected.new_empty(pictures, heads, tokens, dtype=torch.float32)
    # The fastest of six shapes on an H200 (docs/performance.md).
    queries_at_once = min(64, max(16, triton.next_power_of_2(tokens)))
    _forward[(pictures * heads, triton.cdiv(tokens, queries_at_once))](
        projected,
        projected if bias is None else bias,
        mixed,
        normalisers,
        features**-0.5,
        tokens,
        0 if bias is None else bias.shape[2],
        heads,
        features,
        bias is not None,
        queries_at_once,
        min(32, queries_at_once),
        num_warps=4,
        num_stages=3,
    )
    return mixed, normalisers


def backward(
    gradient: Tensor,
    projected: Tensor,
    bias: Tensor | None,
    mixed: Tensor,
    normalisers: Tensor,
    *,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of `forward`'s arguments: (B, T, 3, H, D), and (H, T, P) float32 if wanted."""
    pictures, tokens, _, heads, features = projected.shape
    of_projected = torch.empty_like(projected)
    row = 0 if bias is None else bias.shape[2]
    # Summed over pictures afterwards: sums by atomic additions would differ from run to run.
    shape = (pictures, heads, tokens, row) if wants_bias else (0,)
    of_scores = projected.new_empty(shape)
    queries = max(16, triton.next_power_of_2(tokens))
    _backward[(pictures * heads,)](
        projected,
        projected if bias is None else bias,
        mixed,
        normalisers,
        gradient,
        of_projected,
        of_scores,
        features**-0.5,
        tokens,
        row,
        heads,
        features,
        bias is not None,
        wants_bias,
        queries,
        min(64, queries),
        num_warps=4 if queries < 128 else 8,
        num_stages=1,
    )
    of_bias = of_scores.sum(0, dtype=torch.float32) if wants_bias else normalisers.new_empty(0)
    of_bias[..., tokens:] = 0  # the kernel leaves the padding as it lies
    return of_projected, of_bias
