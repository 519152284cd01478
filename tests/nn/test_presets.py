"""Named sizes and presets, the parameter counts they owe the paper, and refusals."""

import pytest
import torch

from beit.errors import UserError
from beit.nn.counting import count_parameters
from beit.nn.encoder import Encoder, EncoderConfig
from beit.nn.heads import ClassifierHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.presets import PLUS_LAYER_SCALE, SIZES, PresetName, SizeName, encoder_config


@pytest.mark.parametrize(
    ("size", "preset", "parameters"),
    [
        ("base", "paper", 92_089_856),
        ("base", "plus", 91_965_776),
        ("large", "plus", 311_534_016),
    ],
)
def test_masked_image_models_have_the_computed_parameter_counts(
    size: SizeName, preset: PresetName, parameters: int
) -> None:
    with torch.device("meta"):
        encoder = Encoder(encoder_config(size, preset, (224, 224), (16, 16)))
        model = MaskedImageModel(encoder, MaskedTokenHead(encoder.config.width, 8192))
    assert count_parameters(model) == parameters


def test_classifier_has_the_parameters_of_limits() -> None:
    """86.53 M for base with 1000 classes; a bias table in each block, as in fine-tuning."""
    with torch.device("meta"):
        config = encoder_config(
            "base", "plus", (224, 224), (16, 16), relative_positions="per-layer"
        )
        total = count_parameters(Encoder(config)) + count_parameters(ClassifierHead(768, 1000))
    assert total - 768 == 86_530_984  # a mask embedding, which a classifier does not need


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("preset", ["paper", "plus"])
def test_every_size_makes_an_encoder(size: SizeName, preset: PresetName) -> None:
    config = encoder_config(size, preset, (64, 32), (16, 8), drop_path=0.1)
    assert config.grid == (4, 4) and config.drop_path == 0.1
    assert config.absolute_positions == (preset == "paper")
    assert config.layer_scale == (None if preset == "paper" else PLUS_LAYER_SCALE[size])
    with torch.device("meta"):
        Encoder(config)


def test_the_papers_sizes_have_the_layer_scale_they_were_trained_with() -> None:
    """Table of the reference's pre-training commands: 0.1 for base, 1e-5 for large."""
    scales = [
        encoder_config(size, "plus", (224, 224), (16, 16)).layer_scale for size in ("base", "large")
    ]
    assert scales == [0.1, 1e-5]


def test_explicit_settings_win() -> None:
    config = encoder_config("tiny", "plus", (64, 64), (8, 8), layer_scale=None, depth=2)
    assert config.layer_scale is None and config.depth == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": (5, 4)}, "5x4 do not divide an image of 8x12"),
        ({"heads": 5}, "width 12 does not divide into 5 heads"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\)"),
        ({"relative_positions": "layer"}, "relative_positions must be none, shared or per-layer"),
        ({"depth": 0}, "must be at least 1, and depth is 0$"),
        ({"image_size": (0, 0)}, r"must be at least 1, and image_size is \(0, 0\)$"),
    ],
)
def test_impossible_encoders_are_the_users_mistake(
    settings: dict[str, object], message: str
) -> None:
    possible = {"image_size": (8, 12), "patch_size": (4, 4), "width": 12, "depth": 1, "heads": 3}
    with pytest.raises(UserError, match=message):
        EncoderConfig(**{**possible, **settings})  # type: ignore[arg-type]


def test_misspelt_names_get_the_nearest_right_one() -> None:
    with pytest.raises(UserError, match="did you mean small"):
        encoder_config("smal", "paper", (8, 8), (4, 4))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean plus"):
        encoder_config("small", "pluss", (8, 8), (4, 4))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean drop_path"):
        encoder_config("small", "plus", (8, 8), (4, 4), drop_paths=0.1)
