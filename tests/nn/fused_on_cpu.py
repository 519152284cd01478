"""Run by test_fused_attention.py with Triton's interpreter, which must be on before it is imported.

Prints the largest errors of values and gradients against float64 and torch's autograd.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from beit.nn import fused_kernels
from beit.nn.attention import attention_probabilities, split_projected
from beit.nn.fused_attention import _mix, fault_on, fused_attention

CPU = torch.device("cpu")

SHAPES = (  # pictures, tokens, heads, features a head
    (2, 197, 3, 64),
    (2, 65, 2, 32),
    (1, 17, 2, 16),
    (1, 256, 1, 64),
    (1, 290, 2, 16),
)


def expected(projected: Tensor, bias: Tensor) -> Tensor:
    query, key, value = split_projected(projected)
    return (attention_probabilities(query, key, bias) @ value).transpose(1, 2)


def errors(
    pictures: int, tokens: int, heads: int, features: int, dtype: torch.dtype
) -> list[float]:
    drawn = torch.randn(pictures, tokens, 3, heads, features).to(dtype)
    inputs = [drawn, torch.randn(heads, tokens, tokens)]
    given = [tensor.clone().requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    mixed, oracle = fused_attention(*given), expected(*exact)
    received = torch.randn_like(mixed)
    torch.autograd.backward(mixed, received)
    torch.autograd.backward(oracle, received.double())
    pairs = [(mixed, oracle), *((a.grad, b.grad) for a, b in zip(given, exact, strict=True))]
    return [float((a - b).norm() / b.norm()) for a, b in pairs if a is not None and b is not None]


def frozen_or_turned_biases() -> None:
    """A bias without a gradient, and one whose rows are not in the order of memory."""
    projected, drawn = torch.randn(1, 16, 3, 2, 16), torch.randn(2, 16, 16)
    for bias in (drawn, drawn.mT):
        ours, exact = projected.clone().requires_grad_(), projected.double().requires_grad_()
        mixed, oracle = fused_attention(ours, bias), expected(exact, bias.double())
        received = torch.randn_like(mixed)
        torch.autograd.backward(mixed, received)
        torch.autograd.backward(oracle, received.double())
        for found, wanted in ((mixed, oracle), (ours.grad, exact.grad)):
            assert found is not None and wanted is not None
            assert float((found - wanted).norm() / wanted.norm()) < 2e-6


def main() -> None:
    torch.manual_seed(0)
    for shape in SHAPES:
        assert len(errors(*shape, torch.float32)) == 3
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.float16, 2e-3)):
            found = errors(*shape, dtype)
            assert max(found) < tolerance, (shape, dtype, found)
    projected = torch.randn(2, 9, 3, 2, 16, requires_grad=True)
    bias = torch.randn(2, 9, 16, requires_grad=True)
    torch.library.opcheck(_mix, (projected, bias), atol=1e-4, rtol=1e-4)
    assert fault_on(CPU) == ""
    for elsewhere in (torch.inference_mode(), torch.device("meta"), torch.no_grad()):
        with elsewhere:  # whatever the first caller had on
            assert fault_on(CPU) == ""
    frozen_or_turned_biases()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        backward = fused_kernels.backward

        def wrong(*arguments: Any, **more: Any) -> tuple[Tensor, Tensor]:
            of_projected, of_bias = backward(*arguments, **more)
            return of_projected, 1.1 * of_bias

        def impossible(*_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            raise RuntimeError("no compiler\nfor this card")

        for fault in (wrong, impossible):
            fused_kernels.backward = fault
            assert fault_on(CPU)
    sentences = [str(warning.message) for warning in told]
    assert "results are 1.0e-01 apart" in sentences[0], sentences
    assert "(RuntimeError: no compiler)" in sentences[1], sentences
    print("equal")


if __name__ == "__main__":
    main()
