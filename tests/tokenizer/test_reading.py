"""The frozen tokenizer asked cheaply: what stays the same, and how much changes."""

from dataclasses import replace

import pytest
import torch

from beit.tokenizer.config import DiscreteVAEConfig, dalle_config
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.presets import PRESETS
from beit.tokenizer.reading import Precision, TokenReader, agreement

SMALL_DALLE = replace(
    dalle_config((32, 32), 40), encoder_widths=(8, 8, 16, 16), decoder_widths=(16, 16, 8, 8)
)
CONFIGS = {"cosine": PRESETS["digits"], "linear": SMALL_DALLE}
# B images, (h, w) grid, M listed places


def reader(config: DiscreteVAEConfig, precision: Precision = "float32") -> TokenReader:
    torch.manual_seed(0)
    return TokenReader(DiscreteVAE(config).eval(), precision)


def images(config: DiscreteVAEConfig, count: int = 9) -> torch.Tensor:
    return torch.rand(count, 3, *config.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_codes_do_not_depend_on_the_batch(config: DiscreteVAEConfig, precision: Precision) -> None:
    tokens, views = reader(config, precision), images(config)
    together = tokens.codes(views)
    for size in (1, 2, 4):
        parts = [tokens.codes(part) for part in torch.split(views, size)]
        assert torch.equal(torch.cat(parts), together), size


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("count", [1, 9])
def test_codes_at_places_are_those_of_the_grid(
    config: DiscreteVAEConfig, precision: Precision, count: int
) -> None:
    tokens, views = reader(config, precision), images(config, count)
    draws = torch.rand(count, config.grid[0] * config.grid[1])
    index = draws.argsort(1)[:, :5]
    expected = tokens.codes(views).flatten(1).gather(1, index)
    found = tokens.codes_at(views, index)
    assert found.shape == (count, 5) and found.dtype == torch.int64
    assert agreement(found, expected).share == 1.0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_exact_reading_is_the_tokenizers_own(config: DiscreteVAEConfig) -> None:
    tokens, views = reader(config), images(config)
    with torch.autocast("cpu", torch.bfloat16):  # somebody else's does not matter
        assert torch.equal(tokens.codes(views), tokens.model.codes(views))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_changes_few_codes_and_no_weights(
    config: DiscreteVAEConfig, precision: Precision
) -> None:
    tokens, exact, views = reader(config, precision), reader(config), images(config)
    found = agreement(tokens.codes(views), exact.codes(views))
    assert 0.9 <= found.share <= 1.0
    weights = zip(tokens.model.parameters(), exact.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in weights)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_choice_of_the_code_is_made_in_float32(
    config: DiscreteVAEConfig, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the convolutions exact, so would be every code: close logits do not become equal."""
    tokens, views = reader(config, precision), images(config, 60)
    hidden = tokens.model.hidden(views)
    expected = tokens.model.logits_of(hidden).argmax(1)
    monkeypatch.setattr(tokens, "_hidden", lambda images: hidden)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokens.codes(views), expected)


def test_agreement_counts() -> None:
    found = agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4]))
    assert (found.equal, found.codes, found.share) == (3, 4, 0.75)
    assert str(found) == "3 of 4 codes are equal (75.00%)"
