import json
from typing import Any

import pytest

from beit.errors import UserError
from beit.tokenizer.config import DiscreteVAEConfig, dalle_config


@pytest.mark.parametrize("config", [DiscreteVAEConfig(), dalle_config()])
def test_json_round_trip(config: DiscreteVAEConfig) -> None:
    assert DiscreteVAEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_dalle_maps_112_pixels_to_the_papers_grid() -> None:
    config = dalle_config()
    assert config.grid == (14, 14)
    assert config.vocabulary == 8192
    assert config.encoder_gain == config.decoder_gain == 1 / 64
    assert config.output_shuffle == 1
    assert config.output_channels == 6


def test_stride_and_grid() -> None:
    config = DiscreteVAEConfig(image_size=(64, 96))
    assert config.stride == 8
    assert config.grid == (8, 12)


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"image_size": (60, 64)}, "image_size"),
        ({"image_size": (0, 64)}, "image_size"),
        ({"head": "round"}, "head"),
        ({"likelihood": "l1"}, "likelihood"),
        ({"downsampling": "mean"}, "downsampling"),
        ({"head": "linear", "decoder_input": "shared"}, "decoder_input"),
        ({"encoder_blocks": (1,), "encoder_widths": (8, 8)}, "encoder_blocks"),
        ({"decoder_widths": (8,) * 5, "decoder_blocks": (1,) * 5}, "decoder_widths"),
        ({"stem_kernel": 7, "stem_stride": 4}, "stem_kernel"),
        ({"vocabulary": 1}, "vocabulary"),
        ({"vocabulary": 10**12}, "vocabulary must be 2 to"),
        ({"output_kernel": 4}, "output_kernel must be an odd number"),
        ({"output_kernel": 10**9 + 1}, "output_kernel must be an odd number up to"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        DiscreteVAEConfig(**changes)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(UserError, match="wings"):
        DiscreteVAEConfig.from_dict({"wings": 2})
