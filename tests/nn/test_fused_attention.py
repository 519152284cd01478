import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from beit.nn import fused_attention as fused
from beit.nn.attention import attend_projected, attention_probabilities, split_projected
from beit.nn.encoder import Encoder, EncoderConfig
from beit.nn.fused_attention import (
    fused_attention,
    is_leaving,
    is_made_for,
    why_not_for,
)
from engine.imagined_cuda import CUDA, imagined_cuda

HERE = Path(__file__).parent
# Importing torch's compiler warns of a part of torch that goes.
TORCHS_OWN = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton on this platform")
def test_kernels_compute_attention_and_its_gradients() -> None:
    """By Triton's interpreter, on any machine: values, gradients, fake tensors, AOT autograd."""
    done = subprocess.run(
        [sys.executable, HERE / "fused_on_cpu.py"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter is older than this numpy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton on this platform")
def test_kernels_can_be_assembled_for_hopper(tmp_path: Path) -> None:
    """By Triton's compiler, on any machine; and they are what they are said to be.

    A former backward kernel put 160 bytes a thread aside and wrote its result two at a time.
    """
    done = subprocess.run(
        [sys.executable, HERE / "fused_for_hopper.py", tmp_path],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"_forward", "_of_keys_and_values", "_of_queries"}
    for kernel, used in found.items():
        assert used["stack"] <= 16 and used["small"] == 0, kernel
        assert used["shared"] <= 227 * 1024 // 2, kernel  # two of them on a multiprocessor


def test_a_cpu_does_without() -> None:
    projected = torch.randn(2, 5, 3, 2, 16).bfloat16()
    assert not is_made_for(projected)
    assert why_not_for(projected) == "the kernels are made for CUDA"
    query, key, value = split_projected(projected)
    expected = (attention_probabilities(query, key, None) @ value).transpose(1, 2)
    torch.testing.assert_close(attend_projected(projected, None), expected)


def _drawn(tokens: int, heads: int, features: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    projected = torch.randn(4, tokens, 3, heads, features, generator=generator).bfloat16()
    bias = torch.randn(heads, tokens, tokens, generator=generator)
    received = torch.randn(4, tokens, heads, features, generator=generator).bfloat16()
    return projected.cuda(), bias.cuda(), received.cuda()


def _gradients(projected: Tensor, bias: Tensor, received: Tensor) -> list[Tensor]:
    given = [tensor.clone().requires_grad_() for tensor in (projected, bias)]
    mixed = fused_attention(given[0], given[1])
    torch.autograd.backward(mixed, received)
    return [mixed.detach(), *(tensor.grad for tensor in given if tensor.grad is not None)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tokens", "heads", "features"),
    [(197, 12, 64), (65, 3, 64), (17, 4, 16), (256, 2, 32), (1025, 2, 64)],
)
def test_a_gpu_computes_the_same(tokens: int, heads: int, features: int) -> None:
    projected, bias, received = _drawn(tokens, heads, features)
    assert is_made_for(projected)
    exact = [tensor.double().requires_grad_() for tensor in (projected, bias)]
    query, key, value = split_projected(exact[0])
    oracle = (attention_probabilities(query, key, exact[1]) @ value).transpose(1, 2)
    torch.autograd.backward(oracle, received.double())
    expected = [oracle, exact[0].grad, exact[1].grad]
    found = _gradients(projected, bias, received)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs is not None
        assert float(((ours - theirs).norm() / theirs.norm()).detach()) < 8e-3


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits_again() -> None:
    given = _drawn(197, 6, 64)
    for one, other in zip(_gradients(*given), _gradients(*given), strict=True):
        assert torch.equal(one, other)


class Noting(torch.nn.Module):
    """Answers 1 in a graph for elsewhere, else 0."""

    def forward(self, values: Tensor) -> Tensor:
        return values.new_ones(1) if is_leaving() else values.new_zeros(1)


@TORCHS_OWN
def test_only_an_export_leaves() -> None:
    """torch 2.11 says so wherever its compiler looks, and our kernels were never taken."""
    values = torch.zeros(2)
    assert int(Noting()(values)) == 0
    assert int(torch.compile(Noting(), fullgraph=True, backend="eager")(values)) == 0
    for strict in (False, True):
        assert int(torch.export.export(Noting(), (values,), strict=strict).module()(values)) == 1


@pytest.mark.parametrize(
    ("capability", "hip", "triton", "fault", "lacks"),
    [
        ((9, 0), None, True, "", ""),
        ((9, 0), None, True, "results are 2.0 apart", "results are 2.0 apart"),
        ((9, 0), None, False, "", "there is no Triton"),
        ((9, 0), "6.0", True, "", "the card is no Hopper"),  # AMD's
        ((8, 0), None, True, "", "the card is no Hopper"),
        ((10, 0), None, True, "", "the card is no Hopper"),
    ],
)
def test_cards_that_are_taken(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    hip: str | None,
    triton: bool,
    fault: str,
    lacks: str,
) -> None:
    """Each card is asked about itself, not about the current one."""
    card = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", {card: capability}.get)
    monkeypatch.setattr(torch.cuda, "get_device_name", {card: "imagined"}.get)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: triton or None)
    monkeypatch.setattr(fused, "fault_on", {card: fault}.get)
    monkeypatch.setattr(fused, "_faults", {})
    assert fused._card_lacks(card) == lacks
    assert fused._card_is_good_for_it(card) is not bool(lacks)


@pytest.mark.parametrize(
    ("dtype", "tokens", "features", "why"),
    [
        (torch.bfloat16, 2048, 64, ""),
        (torch.float16, 5, 16, ""),
        (torch.float32, 5, 16, "bfloat16 and float16"),
        (torch.bfloat16, 2049, 64, "2,048 tokens"),
        (torch.bfloat16, 5, 48, "16, 32 or 64"),
    ],
)
def test_what_is_not_taken_is_said(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tokens: int, features: int, why: str
) -> None:
    monkeypatch.setattr(fused, "_card_lacks", lambda device: "")
    with imagined_cuda(monkeypatch):
        projected = torch.empty(1, tokens, 3, 2, features, dtype=dtype, device=CUDA)
        assert why in why_not_for(projected)
        assert is_made_for(projected) is not bool(why)


@TORCHS_OWN
@pytest.mark.gpu
def test_a_compiled_encoder_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is first looked at in the middle of compiling, as in a run."""
    monkeypatch.setattr(fused, "_faults", {})
    config = EncoderConfig(
        image_size=(32, 32),
        patch_size=(8, 8),
        width=64,
        depth=2,
        heads=2,
        relative_positions="shared",
        absolute_positions=False,
    )
    torch.manual_seed(0)
    encoder = Encoder(config).cuda()
    images = torch.randn(3, 3, 32, 32, device="cuda")
    found = []
    for called in (torch.compile(encoder, fullgraph=True), encoder):
        encoder.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            tokens = called(images).tokens
        torch.autograd.backward(tokens.square().mean())
        gradients = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        found.append(torch.cat([tokens.detach().flatten(), *gradients]).float())
    assert set(fused._faults.values()) == {""}
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 2e-2
