"""Attention on CUDA by kernels of our own, where they are made for the shapes at hand.

torch reads a learned bias through its memory-efficient kernel, which took nearly a third of a
compiled step of base on an H200 (docs/performance.md); its faster ones refuse a bias. These are
differentiable, known to torch.compile, and give the same bits each time.
"""

# B images, T tokens, H heads, d features a head

import importlib.util
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

MOST_TOKENS = 2048  # beyond them offsets inside a picture could outgrow 32 bits
_FEATURES = (16, 32, 64)
_TOLERANCE = 2e-2  # products in bfloat16 give 5e-3; a wrong index gives 1
_ROW = 16  # a row of the bias is padded to a multiple: it is read in pieces of 16 numbers


def is_leaving() -> bool:
    """Whether what is computed becomes a graph for elsewhere, which cannot take kernels along.

    Not asked by `is_exporting`, which is true in torch 2.11 wherever torch.compile looks.
    """
    exporting: bool = torch.compiler._is_exporting_flag
    return exporting


_faults: dict[str, str] = {}  # by card, "" where there are none; found out once


def _card_lacks(device: torch.device) -> str:
    """What a card lacks for the kernels; "" where it is good for them.

    Triton must be there, and the card a Hopper on which they were seen to work: on others they were
    never timed.
    """
    if not torch.cuda.is_available():
        return "torch finds no CUDA"
    if not is_hopper(device):
        return "the card is no Hopper"
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton"
    card = torch.cuda.get_device_name(device)
    if card not in _faults:
        _faults[card] = fault_on(device)
    return _faults[card]


def is_hopper(device: torch.device) -> bool:
    """Whether a CUDA device is a card that the kernels are made for."""
    # AMD numbers its cards by nines, too.
    return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == 9


def _card_is_good_for_it(device: torch.device) -> bool:
    """Whether a card lacks nothing: what torch.compile takes for a constant."""
    return not _card_lacks(device)


# What `torch.compiler.assume_constant_result` does, without importing torch's compiler for it.
_card_is_good_for_it._dynamo_marked_constant = True  # type: ignore[attr-defined]


def look_at(device: torch.device) -> None:
    """Find out now what later calls know of a CUDA card, and torch.compile in the midst of one."""
    if device.type == "cuda":
        _card_lacks(device)


def fault_on(device: torch.device) -> str:
    """Compare values and gradients with torch's on a little example; warn where they differ.

    Returns:
        What is wrong, in words; "" where nothing is.

    Compilers and drivers change under a program that is not changed: wrong attention would not
    stop a run, it would spoil it.
    """
    # Also in the middle of torch.compile, whose tensors have no numbers.
    with (
        torch.inference_mode(False),
        _disable_current_modes(),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        try:
            apart = _difference(device)
        except Exception as error:  # whatever a compiler can raise
            told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        else:
            if apart < _TOLERANCE:
                return ""
            told = f"results are {apart:.1e} apart"
    warnings.warn(f"fused attention does not work here ({told}); torch's is used", stacklevel=2)
    return told


def _difference(device: torch.device) -> float:
    """The largest relative distance of values and gradients from torch's in float32."""
    generator = torch.Generator().manual_seed(0)
    # As runs have it; Triton's interpreter has no bfloat16.
    half = torch.float16 if device.type == "cpu" else torch.bfloat16

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(half).to(device)

    given = (drawn(2, 150, 3, 2, 64), drawn(2, 150, 150))
    received = drawn(2, 150, 2, 64)
    ours = [tensor.clone().requires_grad_() for tensor in given]
    theirs = [tensor.float().requires_grad_() for tensor in given]
    query, key, value = theirs[0].permute(2, 0, 3, 1, 4).unbind(0)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=theirs[1])
    pairs = [(fused_attention(ours[0], ours[1]), expected.transpose(1, 2))]
    pairs += zip(
        torch.autograd.grad(pairs[0][0], ours, received),
        torch.autograd.grad(pairs[0][1], theirs, received.float()),
        strict=True,
    )
    return max(float((one - other).detach().norm() / other.detach().norm()) for one, other in pairs)


def is_made_for(projected: Tensor) -> bool:
    """Whether `fused_attention` takes (B, T, 3, H, d) queries, keys and values like these."""
    return not _unfit(projected) and not is_leaving() and _card_is_good_for_it(projected.device)


def why_not_for(projected: Tensor) -> str:
    """Why `fused_attention` is not taken for such queries, keys and values; "" where it is.

    For people to read: what computes asks `is_made_for`.
    """
    return _unfit(projected) or _card_lacks(projected.device)


def _unfit(projected: Tensor) -> str:
    """What is not as the kernels want it; "" where everything is."""
    # Sentences without numbers in them: torch.compile follows this, too.
    if projected.device.type != "cuda":
        return "the kernels are made for CUDA"
    if projected.dtype not in (torch.bfloat16, torch.float16):
        return "the kernels take bfloat16 and float16"
    if projected.shape[1] > MOST_TOKENS:
        return "the kernels take no more than 2,048 tokens"
    if projected.shape[4] not in _FEATURES:
        return "the kernels take heads of 16, 32 or 64 features"
    return ""


def fused_attention(projected: Tensor, bias: Tensor) -> Tensor:
    """Mix the values by attention.

    Args:
        projected: (B, T, 3, H, d) queries, keys and values, bfloat16 or float16.
        bias: (H, T, T) added to the scores, of any float type.

    Returns:
        (B, T, H, d). Scores, softmax and bias are float32, products those of the type.
    """
    padded = functional.pad(bias, (0, -bias.shape[2] % _ROW)).contiguous()
    mixed: Tensor = _mix(projected.contiguous(), padded)[0]
    return mixed


def _on_card_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current card, which need not be the tensor's; no card for a CPU's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@torch.library.custom_op("beit::fused_attention", mutates_args=())
def _mix(projected: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    from beit.nn.fused_kernels import forward  # Triton is not everywhere

    with _on_card_of(projected):
        return forward(projected, bias)


@_mix.register_fake
def _(projected: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    pictures, tokens, _, heads, features = projected.shape
    return (
        projected.new_empty(pictures, tokens, heads, features),
        projected.new_empty(pictures, heads, tokens, dtype=torch.float32),
    )


@torch.library.custom_op("beit::fused_attention_backward", mutates_args=())
def _unmix(
    gradient: Tensor,
    projected: Tensor,
    bias: Tensor,
    mixed: Tensor,
    normalisers: Tensor,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    from beit.nn.fused_kernels import backward

    with _on_card_of(projected):
        return backward(gradient, projected, bias, mixed, normalisers, wants_bias=wants_bias)


@_unmix.register_fake
def _(
    gradient: Tensor,
    projected: Tensor,
    bias: Tensor,
    mixed: Tensor,
    normalisers: Tensor,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    shape = bias.shape if wants_bias else (0,)
    return torch.empty_like(projected), projected.new_empty(shape, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
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
