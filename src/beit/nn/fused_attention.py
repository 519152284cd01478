"""Attention on CUDA by kernels of our own, where they are made for the shapes at hand.

torch reads a learned bias through its memory-efficient kernel, which took 26 of the 89 ms of a
compiled step of base on an H200 (docs/performance.md); its faster ones refuse a bias. These are
differentiable, known to torch.compile, and give the same bits each time.
"""

# B images, T tokens, H heads, d features a head

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MOST_TOKENS = 256  # one program of the backward kernel holds all queries of a head
_FEATURES = (16, 32, 64)
_ROW = 16  # a row of the bias is padded to a multiple: aligned, it is read in larger pieces


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _machine_has_it() -> bool:
    """Whether Triton is installed and the card is a Hopper: others have too little fast memory."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability()[0] == 9


def is_made_for(projected: Tensor) -> bool:
    """Whether `fused_attention` takes (B, T, 3, H, d) queries, keys and values like these."""
    return (
        projected.device.type == "cuda"
        and projected.dtype in (torch.bfloat16, torch.float16)
        and projected.shape[1] <= MOST_TOKENS
        and projected.shape[4] in _FEATURES
        and not torch.compiler.is_exporting()  # a graph that leaves cannot take kernels along
        and _machine_has_it()
    )


def fused_attention(projected: Tensor, bias: Tensor | None) -> Tensor:
    """Mix the values by attention.

    Args:
        projected: (B, T, 3, H, d) queries, keys and values, bfloat16 or float16.
        bias: (H, T, T) added to the scores, of any float type, or None.

    Returns:
        (B, T, H, d). Scores, softmax and bias are float32, products those of the type.
    """
    if bias is not None:
        bias = functional.pad(bias, (0, -bias.shape[2] % _ROW))
    mixed: Tensor = _mix(projected.contiguous(), bias)[0]
    return mixed


@torch.library.custom_op("beit::fused_attention", mutates_args=())
def _mix(projected: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    from beit.nn.fused_kernels import forward  # Triton is not everywhere

    return forward(projected, bias)


@_mix.register_fake
def _(projected: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    pictures, tokens, _, heads, features = projected.shape
    return (
        projected.new_empty(pictures, tokens, heads, features),
        projected.new_empty(pictures, heads, tokens, dtype=torch.float32),
    )


@torch.library.custom_op("beit::fused_attention_backward", mutates_args=())
def _unmix(
    gradient: Tensor,
    projected: Tensor,
    bias: Tensor | None,
    mixed: Tensor,
    normalisers: Tensor,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    from beit.nn.fused_kernels import backward

    return backward(gradient, projected, bias, mixed, normalisers, wants_bias=wants_bias)


@_unmix.register_fake
def _(
    gradient: Tensor,
    projected: Tensor,
    bias: Tensor | None,
    mixed: Tensor,
    normalisers: Tensor,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    shape = bias.shape if wants_bias and bias is not None else (0,)
    return torch.empty_like(projected), projected.new_empty(shape, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _go_back(
    ctx: Any, gradient: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if gradient is None:
        return None, None
    projected, bias, *output = ctx.saved_tensors
    wants_bias = ctx.needs_input_grad[1]
    found, of_bias = _unmix(gradient.contiguous(), projected, bias, *output, wants_bias)
    return found, of_bias.to(bias.dtype) if wants_bias else None


_mix.register_autograd(_go_back, setup_context=_keep)
