"""Attention against a slow oracle, and its two forms against each other."""

from typing import Any

import pytest
import torch

from beit.nn.attention import (
    Attention,
    RecomputedAttention,
    _aligned,
    attend,
    attention_probabilities,
    scaled_linear,
    split_projected,
)
from oracles.oracle_attention import slow_attention


def _inputs(
    images: int, heads: int, tokens: int, features: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = torch.randn(3, images, heads, tokens, features).unbind(0)
    return query, key, value, torch.randn(heads, tokens, tokens)


@pytest.mark.parametrize("biased", [False, True])
def test_both_forms_equal_the_slow_oracle(biased: bool) -> None:
    query, key, value, bias = _inputs(2, 2, 4, 3)
    given = bias if biased else None
    expected = slow_attention(query, key, value, given)
    torch.testing.assert_close(attend(query, key, value, given), expected)
    written_out = attention_probabilities(query, key, given) @ value
    torch.testing.assert_close(written_out, expected)


@pytest.mark.parametrize("biased", [False, True])
def test_half_precision_stays_close_to_single(biased: bool) -> None:
    query, key, value, bias = _inputs(2, 3, 17, 16)
    given = bias if biased else None
    expected = attend(query, key, value, given)
    rounded = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), given)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("half", [False, True])
def test_module_mixes_values_by_the_probabilities_it_reports(half: bool) -> None:
    attention = Attention(width=12, heads=3)
    torch.nn.init.normal_(attention.query_bias)
    torch.nn.init.normal_(attention.value_bias)
    tokens, bias = torch.randn(2, 5, 12), torch.randn(3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = attention(tokens, bias)
        probabilities = attention.probabilities(tokens, bias)
        _, _, value = split_projected(attention._project(tokens))
        mixed = probabilities.to(value.dtype) @ value
        expected = attention.output(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(
        probabilities.float().sum(-1), torch.ones(2, 3, 5), atol=1e-2, rtol=0
    )


def test_a_bias_on_the_keys_would_change_nothing() -> None:
    query, key, value, bias = _inputs(1, 2, 6, 4)
    shifted = key + torch.randn(1, 2, 1, 4)
    torch.testing.assert_close(attend(query, shifted, value, bias), attend(query, key, value, bias))


@pytest.mark.parametrize("biased", [False, True])
def test_recomputed_attention_has_the_gradients_of_autograd(biased: bool) -> None:
    given = [tensor.double().requires_grad_() for tensor in _inputs(2, 3, 7, 4)]
    query, key, value = given[:3]
    bias = given[3] if biased else None
    weight = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    written_out = attention_probabilities(query, key, bias) @ value
    mixed = RecomputedAttention.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
    assert torch.equal(mixed, written_out)
    wanted = given if biased else given[:3]
    expected = torch.autograd.grad((written_out * weight).sum(), wanted)
    torch.testing.assert_close(torch.autograd.grad((mixed * weight).sum(), wanted), expected)


@pytest.mark.parametrize("biased", [False, True])
def test_recomputed_attention_has_second_derivatives(biased: bool) -> None:
    given = [tensor.double().requires_grad_() for tensor in _inputs(2, 2, 3, 2)]
    inputs: Any = given if biased else [*given[:3], None]
    assert torch.autograd.gradcheck(RecomputedAttention.apply, inputs)
    assert torch.autograd.gradgradcheck(RecomputedAttention.apply, inputs)


def test_a_learned_bias_makes_nothing_large_to_be_kept() -> None:
    tokens, attention = torch.randn(2, 40, 12), Attention(width=12, heads=3)
    bias, kept = torch.randn(3, 40, 40, requires_grad=True), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = attention(tokens, bias)
    assert torch.Size((2, 3, 40, 40)) not in kept and bias.shape in kept
    output.square().sum().backward()
    assert bias.grad is not None and bias.grad.abs().sum() > 0


@pytest.mark.parametrize("half", [False, True])
def test_factors_of_a_linear_layer_are_those_of_its_results(half: bool) -> None:
    values, scale = torch.randn(5, 4, 6), torch.randn(3, requires_grad=True)
    linear = torch.nn.Linear(6, 3)
    weight = torch.randn(5, 4, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        results = [scaled_linear(values, linear, scale), linear(values) * scale]
    rtol = 0.05 if half else 1e-5
    torch.testing.assert_close(results[0].float(), results[1].float(), rtol=rtol, atol=rtol)
    ours, theirs = (
        torch.autograd.grad((result.float() * weight).sum(), (scale, *linear.parameters()))
        for result in results
    )
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=4 * rtol)


class Adapter(torch.nn.Module):
    """A low-rank one is like this: round a layer, with the layer's weights for all to see."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear, self.weight, self.bias = linear, linear.weight, linear.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.linear(values) + 1  # type: ignore[no-any-return]


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["qkv", "output"])
def test_what_is_put_round_a_layer_is_heard(name: str, scaled: bool, hooked: bool) -> None:
    """Its weights alone were used once: an adapter would have learned nothing."""
    attention, tokens = Attention(width=12, heads=3), torch.randn(2, 5, 12)
    scale = torch.rand(12) if scaled else None
    before, plain = attention(tokens, scale=scale), attention(tokens)
    linear = getattr(attention, name)
    if hooked:
        linear.register_forward_hook(lambda module, given, result: result + 1)
    else:
        setattr(attention, name, Adapter(linear))
    after = attention(tokens, scale=scale)
    assert not torch.allclose(before, after)
    if name == "output":
        wanted = plain + 1 if scale is None else (plain + 1) * scale
        torch.testing.assert_close(after, wanted)


@pytest.mark.parametrize("tokens", [5, 8, 197])
def test_aligned_bias_has_the_same_values_in_rows_of_multiples_of_eight(tokens: int) -> None:
    bias = torch.randn(2, tokens, tokens)
    aligned = _aligned(bias)
    assert torch.equal(aligned, bias)
    assert aligned.stride(-2) % 8 == 0 and aligned.stride(-2) - tokens < 8
