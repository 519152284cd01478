"""Counted work against published-style figures and against torch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from beit.nn.counting import count_flops, count_work
from beit.nn.encoder import Encoder, EncoderConfig
from beit.nn.heads import MaskedTokenHead
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
    assert count_flops(config, places, outputs) == work.forward


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
    assert counter.get_total_flops() == count_flops(config, 5, 10)
