"""Counted work against published-style figures and against torch's own counter."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from beit.nn.counting import count_activations, count_work
from beit.nn.encoder import Encoder, EncoderConfig
from beit.nn.heads import ClassifierHead, MaskedTokenHead
from beit.nn.presets import SizeName, encoder_config


@pytest.mark.parametrize(
    ("size", "places", "outputs", "forward", "training"),
    [
        ("base", 75, 8192, 36.07, 107.98),
        ("base", 196, 8192, 37.59, 112.55),
        ("large", 75, 8192, 124.37, 372.79),
        ("large", 196, 8192, 126.40, 378.88),
        ("base", 1, 1000, 35.13, 105.15),
    ],
)
def test_gigaflop_an_image(
    size: SizeName, places: int, outputs: int, forward: float, training: float
) -> None:
    config = encoder_config(size, "plus", (224, 224), (16, 16))
    work = count_work(config, places, outputs)
    assert work.forward / 1e9 == pytest.approx(forward, abs=0.006)
    assert work.training / 1e9 == pytest.approx(training, abs=0.012)


def test_parts_of_base() -> None:
    work = count_work(encoder_config("base", "paper", (224, 224), (16, 16)), 75, 8192)
    parts = [part / 1e9 for part in (work.linears, work.attention, work.head, work.patches)]
    assert parts == pytest.approx([33.46, 1.43, 0.94, 0.23], abs=0.006)


@pytest.mark.parametrize("relative", ["none", "shared"])
def test_equals_torchs_counter(relative: str) -> None:
    config = EncoderConfig((16, 24), (8, 4), 24, 2, 3, mlp_ratio=3, relative_positions=relative)  # type: ignore[arg-type]
    encoder, head = Encoder(config), MaskedTokenHead(24, 10)
    counter = FlopCounterMode(display=False)
    # The written-out form of torch's kernel: its fused ones on a CPU are not all counted.
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        head(encoder(torch.randn(1, 3, 16, 24)).tokens[:, 1:6])
    assert counter.get_total_flops() == count_work(config, 5, 10).forward


def saved_bytes(model: nn.Module, call: Callable[[], object]) -> int:
    """Bytes that autograd keeps of a call, beside the model's own; views of one memory once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)


KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "bfloat16": (True, {}),
    "float32, torch's kernel": (False, {}),
    "bfloat16 with a bias": (True, {"relative_positions": "shared"}),
    "float32 with a bias": (False, {"relative_positions": "shared"}),
    "LayerScale": (True, {"layer_scale": 0.1}),
    "dropout": (True, {"dropout": 0.1}),
    "checkpointing": (True, {"checkpointing": True, "depth": 6}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("places", [20, None])
def test_activations_are_what_autograd_keeps(kind: str, places: int | None) -> None:
    half, changes = KINDS[kind]
    config = replace(EncoderConfig((80, 80), (8, 8), 96, 3, 4, drop_path=0.1), **changes)
    encoder = Encoder(config)
    head = ClassifierHead(96, 50) if places is None else MaskedTokenHead(96, 50)
    model = nn.ModuleList((encoder, head))

    def loss(images: int) -> Tensor:
        read = None if places is None else torch.arange(places).expand(images, -1) + 1
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            tokens = encoder(torch.randn(images, 3, 80, 80), read=read).tokens
            logits = head(tokens).flatten(0, -2)
        return functional.cross_entropy(logits.float(), torch.zeros(len(logits)).long())

    found = (saved_bytes(model, lambda: loss(6)) - saved_bytes(model, lambda: loss(2))) / 4
    if config.checkpointing:  # what is recomputed comes on top, a block at a time
        block = replace(config, checkpointing=False, depth=1)
        found += count_activations(block, None, 1, half=half) - 100 * 192 * (2 if half else 4)
    counted = count_activations(config, places, 50, half=half)
    assert counted == pytest.approx(found, rel=0.05)


def test_activations_of_base_and_large_are_those_counted_by_hand() -> None:
    found = []
    for size in ("base", "large"):
        config = encoder_config(size, "paper", (224, 224), (16, 16))
        found.append(count_activations(config, 75, 8192, half=True) / 1e6)
    assert found == pytest.approx([65, 174], rel=0.05)
