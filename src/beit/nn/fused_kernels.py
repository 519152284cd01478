"""Attention with a learned bias in three kernels, written in Triton; see `fused_attention`.

What torch has for CUDA reads the bias through a kernel of an older generation of cards. Here no
program adds to what another one writes, so that the same bits come out each time: going back, each
holds some keys of a head while it goes through the queries, and leaves the scores' gradient, which
the bias needs anyway, for the queries' kernel to multiply.
"""

# B images, T tokens, H heads, D features a head; numbers in (B, T, 3, H, D) memory; P a padded row

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)


class Blocks(NamedTuple):
    """How a kernel divides its work."""

    queries: int  # at once
    keys: int
    warps: int
    stages: int  # blocks that are read ahead

    def within(self, tokens: int) -> "Blocks":
        """No more at once than a short sequence has."""
        whole = max(16, triton.next_power_of_2(tokens))
        return self._replace(queries=min(self.queries, whole), keys=min(self.keys, whole))


# The first was the fastest of six on an H200; the others are the largest for which a Hopper has
# registers enough, as its assembler tells (docs/performance.md).
FORWARD = Blocks(queries=64, keys=32, warps=4, stages=3)
OF_KEYS_AND_VALUES = Blocks(queries=64, keys=64, warps=4, stages=2)
OF_QUERIES = Blocks(queries=64, keys=64, warps=4, stages=2)


@triton.jit
def _place(tokens, at_once: tl.constexpr, heads: tl.constexpr):
    """Which head of all, of which picture and in it a program works on, and on which tokens.

    One after the other come the programs of a head, which read the same numbers.
    """
    blocks = tl.cdiv(tokens, at_once)
    member = tl.program_id(0) // blocks
    own = (tl.program_id(0) % blocks) * at_once + tl.arange(0, at_once)
    return member, (member // heads).to(tl.int64), member % heads, own


@triton.jit
def _scores(query, key, bias, rows, columns, tokens, row_stride, scale):
    """Base-2 logits of some queries for some keys, -inf where there is no key."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * LOG2_E)
    # As far as a row is padded, not as far as there are keys: 16 numbers are in or out together.
    read = (rows < tokens)[:, None] & (columns < row_stride)[None, :]
    added = tl.load(bias + rows[:, None] * row_stride + columns[None, :], mask=read, other=0.0)
    scores += added.to(tl.float32) * LOG2_E
    return tl.where((columns < tokens)[None, :], scores, float("-inf"))


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
    queries_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
):
    member, picture, head, rows = _place(tokens, queries_at_once, heads)
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
        of_head = bias + head * tokens * row_stride
        scores = _scores(query, key, of_head, rows, columns, tokens, row_stride, scale)
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
    tl.store(normalisers + member * tokens + rows, largest + tl.log2(total), mask=own)


@triton.jit
def _of_keys_and_values(
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
    queries_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
):
    member, picture, head, columns = _place(tokens, keys_at_once, heads)
    there = columns < tokens
    feature = tl.arange(0, features)
    step = 3 * heads * features
    start = picture * tokens * step + head * features
    key_cells = start + heads * features + columns[:, None] * step + feature[None, :]
    value_cells = key_cells + heads * features
    key = tl.load(projected + key_cells, mask=there[:, None], other=0.0)
    value = tl.load(projected + value_cells, mask=there[:, None], other=0.0)
    of_key = tl.zeros((keys_at_once, features), tl.float32)
    of_value = tl.zeros((keys_at_once, features), tl.float32)
    for first in range(0, tokens, queries_at_once):
        rows = first + tl.arange(0, queries_at_once)
        own = rows < tokens
        read = projected + start + rows[:, None] * step + feature[None, :]
        query = tl.load(read, mask=own[:, None], other=0.0)
        place = (picture * tokens + rows[:, None]) * (heads * features) + head * features
        received = tl.load(gradient + place + feature[None, :], mask=own[:, None], other=0.0)
        given = tl.load(mixed + place + feature[None, :], mask=own[:, None], other=0.0)
        common = tl.sum(received.to(tl.float32) * given.to(tl.float32), 1)
        # Rows beyond the tokens: infinity makes all their probabilities 0.
        where = normalisers + member * tokens + rows
        normaliser = tl.load(where, mask=own, other=float("inf"))
        of_head = bias + head * tokens * row_stride
        scores = _scores(query, key, of_head, rows, columns, tokens, row_stride, scale)
        weights = tl.exp2(scores - normaliser[:, None])
        weight = tl.trans(weights.to(received.dtype))
        of_value += tl.dot(weight, received, input_precision="ieee")
        of_weights = tl.dot(received, tl.trans(value), input_precision="ieee")
        change = (weights * (of_weights - common[:, None])).to(query.dtype)
        line = of_scores + (member.to(tl.int64) * tokens + rows[:, None]) * row_stride
        written = own[:, None] & (columns < row_stride)[None, :]  # zeros into the padding
        tl.store(line + columns[None, :], change, mask=written)
        of_key += tl.dot(tl.trans(change), query, input_precision="ieee")
    of_key = (of_key * scale).to(of_projected.dtype.element_ty)
    of_value = of_value.to(of_projected.dtype.element_ty)
    tl.store(of_projected + key_cells, of_key, mask=there[:, None])
    tl.store(of_projected + value_cells, of_value, mask=there[:, None])


@triton.jit
def _of_queries(
    projected,
    of_scores,
    of_projected,
    scale,
    tokens,
    row_stride,
    heads: tl.constexpr,
    features: tl.constexpr,
    queries_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
):
    member, picture, head, rows = _place(tokens, queries_at_once, heads)
    own = rows < tokens
    feature = tl.arange(0, features)
    step = 3 * heads * features
    start = picture * tokens * step + head * features
    line = of_scores + (member.to(tl.int64) * tokens + rows[:, None]) * row_stride
    found = tl.zeros((queries_at_once, features), tl.float32)
    for first in range(0, tokens, keys_at_once):
        columns = first + tl.arange(0, keys_at_once)
        read = own[:, None] & (columns < row_stride)[None, :]
        change = tl.load(line + columns[None, :], mask=read, other=0.0)
        where = projected + start + heads * features + columns[:, None] * step + feature[None, :]
        key = tl.load(where, mask=(columns < tokens)[:, None], other=0.0)
        found += tl.dot(change, key, input_precision="ieee")
    place = of_projected + start + rows[:, None] * step + feature[None, :]
    tl.store(place, (found * scale).to(of_projected.dtype.element_ty), mask=own[:, None])


def forward(projected: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Mix the values.

    Args:
        projected: (B, T, 3, H, D) contiguous queries, keys and values.
        bias: (H, T, P) contiguous, P >= T a multiple of 16.

    Returns:
        (B, T, H, D), and the (B, H, T) float32 base-2 logarithms of each query's normaliser.
    """
    pictures, tokens, _, heads, features = projected.shape
    mixed = projected.new_empty(pictures, tokens, heads, features)
    normalisers = projected.new_empty(pictures, heads, tokens, dtype=torch.float32)
    blocks = FORWARD.within(tokens)
    _forward[(pictures * heads * triton.cdiv(tokens, blocks.queries),)](
        projected,
        bias,
        mixed,
        normalisers,
        features**-0.5,
        tokens,
        bias.shape[2],
        heads,
        features,
        blocks.queries,
        blocks.keys,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return mixed, normalisers


def backward(
    gradient: Tensor,
    projected: Tensor,
    bias: Tensor,
    mixed: Tensor,
    normalisers: Tensor,
    *,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of `forward`'s arguments: (B, T, 3, H, D), and (H, T, P) float32 if wanted."""
    pictures, tokens, _, heads, features = projected.shape
    of_projected = torch.empty_like(projected)
    row = bias.shape[2]
    # Summed over pictures afterwards: sums by atomic additions would differ from run to run.
    of_scores = projected.new_empty(pictures, heads, tokens, row)
    blocks = OF_KEYS_AND_VALUES.within(tokens)
    _of_keys_and_values[(pictures * heads * triton.cdiv(tokens, blocks.keys),)](
        projected,
        bias,
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
        blocks.queries,
        blocks.keys,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    blocks = OF_QUERIES.within(tokens)
    _of_queries[(pictures * heads * triton.cdiv(tokens, blocks.queries),)](
        projected,
        of_scores,
        of_projected,
        features**-0.5,
        tokens,
        row,
        heads,
        features,
        blocks.queries,
        blocks.keys,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    of_bias = of_scores.sum(0, dtype=torch.float32) if wants_bias else normalisers.new_empty(0)
    return of_projected, of_bias
