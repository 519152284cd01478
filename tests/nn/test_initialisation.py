"""Initial values by their statistics."""

import math

import pytest
import torch
from torch import Tensor, nn

from beit.nn.encoder import Encoder, EncoderConfig
from beit.nn.heads import ClassifierHead, MaskedTokenHead
from beit.nn.initialisation import truncated_normal_

# Of a standard normal cut at +-1: sqrt(1 - 2 phi(1) / (Phi(1) - Phi(-1))).
CUT_DEVIATION = math.sqrt(
    1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(1 / math.sqrt(2))
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(
        EncoderConfig((32, 32), (8, 8), 96, 4, 4, relative_positions="shared", layer_scale=0.1)
    )


def _assert_truncated_normal(values: Tensor, divisor: float = 1.0) -> None:
    standard = values.detach() * divisor / 0.02
    assert standard.abs().max() <= 1 + 1e-5
    assert abs(standard.mean()) < 5 * CUT_DEVIATION / math.sqrt(values.numel())
    tolerance = 0.02 if values.numel() > 5000 else 0.2
    assert standard.std() == pytest.approx(CUT_DEVIATION, rel=tolerance)


def test_the_cut_normal_has_the_deviation_it_should() -> None:
    values = torch.empty(200_000)
    truncated_normal_(values)
    assert values.std().item() == pytest.approx(0.0108, abs=1e-4)
    _assert_truncated_normal(values)


def test_residual_writers_shrink_with_depth(encoder: Encoder) -> None:
    for number in range(4):
        for layer in ("attention.output", "mlp.contract"):
            weight = encoder.get_parameter(f"blocks.{number}.{layer}.weight")
            _assert_truncated_normal(weight, math.sqrt(2 * (number + 1)))


def test_other_weights_are_cut_normals(encoder: Encoder) -> None:
    names = ["embeddings.projection.weight", "embeddings.positions", "embeddings.special_token"]
    names += ["embeddings.mask_embedding"]
    names += [f"blocks.{i}.{layer}.weight" for i in range(4) for layer in ("attention.qkv",)]
    names += [f"blocks.{i}.mlp.expand.weight" for i in range(4)]
    for name in names:
        _assert_truncated_normal(encoder.get_parameter(name))


def test_biases_and_tables_are_zero_and_scales_as_given(encoder: Encoder) -> None:
    for name, parameter in encoder.named_parameters():
        if name.endswith(("bias", "table")):
            assert not parameter.any(), name
        if name.endswith("_scale"):
            torch.testing.assert_close(parameter.detach(), torch.full((96,), 0.1))
        if name.endswith("norm.weight"):
            assert torch.equal(parameter.detach(), torch.ones(96))


def test_heads() -> None:
    head = MaskedTokenHead(96, 512)
    _assert_truncated_normal(head.output.weight)
    assert not head.output.bias.any()
    _assert_truncated_normal(ClassifierHead(96, 100).output.weight, divisor=1000)


def test_same_seed_same_model() -> None:
    config = EncoderConfig((16, 16), (8, 8), 24, 2, 2)
    states: list[nn.Module] = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(Encoder(config))
    for first, second in zip(states[0].parameters(), states[1].parameters(), strict=True):
        assert torch.equal(first, second)
