import pytest
import torch

from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.presets import PRESETS


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
        model = DiscreteVAE(PRESETS[name])
        images = torch.empty(1, 3, *model.image_size)
        outputs = model.decode(model.logits(images))
    assert outputs.shape == (1, model.config.output_channels, *model.image_size)
