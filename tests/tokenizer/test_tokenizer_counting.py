"""The tokenizer's counted work: the figures of DALL-E's, and torch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from beit.tokenizer.config import DiscreteVAEConfig, dalle_config
from beit.tokenizer.counting import count_tokenizer_work
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.presets import PRESETS

SHAPES = {
    **PRESETS,
    "dalle": dalle_config(),
    "no block at first": DiscreteVAEConfig(encoder_widths=(8, 24, 40), encoder_blocks=(0, 1, 0)),
    "separate": DiscreteVAEConfig(head="cosine", decoder_input="separate", decoder_widths=(64, 32),
                                  decoder_blocks=(1, 2)),
}  # fmt: skip


def test_dalles_encoder_costs_what_was_counted_before() -> None:
    work = count_tokenizer_work(dalle_config())
    assert work.reading / 1e9 == pytest.approx(52.12, abs=0.006)
    parts = [work.stem, *work.groups, work.head]
    expected = [0.94, 11.9, 10.9, 10.9, 10.9, 6.58]
    assert [part / 1e9 for part in parts] == pytest.approx(expected, abs=0.06)
    with torch.device("meta"):
        vae = DiscreteVAE(dalle_config())
    read = sum(p.numel() for part in (vae.encoder, vae.head) for p in part.parameters())
    assert read / 1e6 == pytest.approx(53.79, abs=0.006)


@pytest.mark.parametrize("name", SHAPES)
def test_equals_torchs_counter(name: str) -> None:
    config = SHAPES[name]
    with torch.device("meta"):
        vae, codes = DiscreteVAE(config), torch.zeros(1, config.vocabulary, *config.grid)
        images = torch.zeros(1, 3, *config.image_size)
    with FlopCounterMode(display=False) as reading:
        vae.logits(images)
    with FlopCounterMode(display=False) as decoding:
        vae.decode(codes)
    work = count_tokenizer_work(config)
    assert reading.get_total_flops() == work.reading
    assert decoding.get_total_flops() == work.decoder


def test_training_equals_torchs_counter() -> None:
    config = replace(PRESETS["digits"], head="linear", decoder_input="separate")
    vae = DiscreteVAE(config)
    with FlopCounterMode(display=False) as counter:
        codes = vae.logits(torch.rand(1, 3, *config.image_size)).softmax(1)
        torch.autograd.backward(vae.decode(codes).sum())
    assert counter.get_total_flops() == count_tokenizer_work(config).training


def test_another_grid_and_fewer_places() -> None:
    config = PRESETS["small"]  # trained at 10x10, read at 14x14
    whole, other = count_tokenizer_work(config), count_tokenizer_work(config, (14, 14))
    assert other.forward * 100 == whole.forward * 196
    listed = count_tokenizer_work(config, (14, 14), places=49)
    assert listed.head * 4 == other.head
    assert listed[:2] == other[:2]
