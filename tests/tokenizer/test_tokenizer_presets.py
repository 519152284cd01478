import pytest
import torch

from beit.errors import UserError
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.presets import PRESETS, tokenizer_config


def test_the_papers_grid_and_vocabulary() -> None:
    for name in ("base", "large"):
        assert PRESETS[name].grid == (14, 14)
        assert PRESETS[name].vocabulary == 8192


def test_small_presets_give_enough_tokens() -> None:
    grids = {name: PRESETS[name].grid for name in ("digits", "tiny", "small")}
    assert grids["tiny"] == (8, 8)
    assert grids["small"] == (10, 10)
    assert grids["digits"][0] * grids["digits"][1] >= 16


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name: str) -> None:
    with torch.device("meta"):
        model = DiscreteVAE(tokenizer_config(name))
        images = torch.empty(1, 3, *model.image_size)
        outputs = model.decode(model.logits(images))
    assert outputs.shape == (1, model.config.output_channels, *model.image_size)


def test_size_and_vocabulary_can_be_changed() -> None:
    config = tokenizer_config("tiny", image_size=(96, 64), vocabulary=4096)
    assert config.grid == (12, 8)
    assert config.vocabulary == 4096
    assert tokenizer_config("tiny") == PRESETS["tiny"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="tiny"):
        tokenizer_config("teeny")
