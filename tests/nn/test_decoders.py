"""Decoders: parts against torch's own, pictures singly, any patch and any rectangle."""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from beit.errors import UserError
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import (
    DecoderConfig,
    decoder_config,
    decoder_config_from,
    default_layers,
    default_pyramid,
)
from beit.nn.decoders import (
    ConvolutionBlock,
    PixelClassifier,
    ProgressiveUpsampling,
    map_norm,
    resized,
    upsampling_steps,
)
from beit.nn.upernet import Enlarge, Reduce, UPerNet, pooling_matrix

ENCODER = EncoderConfig((64, 96), (16, 16), width=32, depth=4, heads=2)


@pytest.mark.parametrize("depth, layers", [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23))])
def test_default_layers_are_the_references(depth: int, layers: tuple[int, ...]) -> None:
    assert default_layers(depth) == layers


@pytest.mark.parametrize("depth", range(1, 41))
def test_default_layers_exist_at_any_depth(depth: int) -> None:
    layers = default_layers(depth)
    assert list(layers) == sorted(layers) and layers[0] >= 0 and layers[-1] == depth - 1


def test_default_pyramids_have_the_references_strides() -> None:
    assert default_pyramid((16, 16)) == (4, 2, 1, 0.5)
    assert default_pyramid((8, 8)) == (2, 1, 0.5, 0.25)
    assert default_pyramid((14, 14)) == default_pyramid((8, 16)) == (4, 2, 1, 0.5)


@pytest.mark.parametrize("kind", ["pup", "upernet"])
def test_configurations_survive_json(kind: Any) -> None:
    config = decoder_config(kind, ENCODER, 5, auxiliary=True, norm="group")
    assert decoder_config_from(json.loads(json.dumps(asdict(config)))) == config
    assert hash(config) == hash(decoder_config(kind, ENCODER, 5, auxiliary=True, norm="group"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "mask"}, "one of .pup., .upernet."),
        ({"norm": "layer"}, "batch or group"),
        ({"classes": 0}, "at least 1"),
        ({"channels": 0}, "at least 1"),
        ({"pooling": ()}, "at least 1"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"layers": (0, 1)}, "reads 4 layers"),
        ({"layers": (-1, 1, 2, 3)}, "counted from 0"),
        ({"pyramid": (3.0, 2.0, 1.0, 0.5)}, "powers of two"),
        ({"pyramid": (1.0,), "layers": (1,)}, "two or more"),
        ({"chanels": 3}, "unknown 'chanels'"),
        ({"layers": 3}, "does not describe"),
        ({"classes": 5.0}, "whole numbers"),
        ({"layers": ["0", 1, 2, 3]}, "whole numbers"),
        ({"pyramid": [[4.0], 2.0, 1.0, 0.5]}, "does not describe"),
        ({"pooling": [1, 300]}, "at most 256"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(change: dict[str, Any], words: str) -> None:
    values = asdict(decoder_config("upernet", ENCODER, 5)) | change
    with pytest.raises(UserError, match=words):
        decoder_config_from(values)
    with pytest.raises(UserError, match="no 'layers'"):
        decoder_config_from({"kind": "pup", "classes": 2, "channels": 3})


@pytest.mark.parametrize("size", [(6, 6), (7, 9), (1, 4), (5, 13)], ids=str)
@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_pooling_matrices_are_adaptive_average_pooling(cells: int, size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size)
    pooled = pooling_matrix(cells, size[0]) @ maps @ pooling_matrix(cells, size[1]).T
    torch.testing.assert_close(pooled, functional.adaptive_avg_pool2d(maps, cells))


@pytest.mark.parametrize("side", [2, 4])
def test_reduction_is_maximum_pooling(side: int) -> None:
    maps = torch.randn(2, 3, 9, 13)
    assert torch.equal(Reduce(side)(maps), functional.max_pool2d(maps, side, side))


@pytest.mark.parametrize("doublings", [1, 2, 3])
def test_enlargement_doubles(doublings: int) -> None:
    assert Enlarge(8, doublings, "group")(torch.randn(1, 8, 2, 3)).shape == (
        *(1, 8),
        *(2 * 2**doublings, 3 * 2**doublings),
    )


def test_groups_hold_eight_channels_or_more() -> None:
    for channels in (1, 7, 8, 24, 64, 192, 256, 768):
        norm = map_norm("group", channels)
        assert isinstance(norm, nn.GroupNorm)
        assert norm.num_groups == 1 or channels // norm.num_groups >= 8
        assert norm.num_groups <= 32
    wide = map_norm("group", 256)
    assert isinstance(wide, nn.GroupNorm) and wide.num_groups == 32


def test_a_block_is_convolution_norm_relu() -> None:
    block = ConvolutionBlock(3, 4, 3, "batch").eval()
    assert isinstance(block.norm, nn.BatchNorm2d)
    block.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    block.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    maps = torch.randn(2, 3, 5, 6)
    raw = functional.conv2d(maps, block.convolution.weight, padding=1)
    mean, variance = block.norm.running_mean, block.norm.running_var
    assert mean is not None and variance is not None
    normal = (raw - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(block(maps), normal.clamp_min(0))


def test_dropout_takes_whole_channels_by_the_draws() -> None:
    classifier = PixelClassifier(4, 4, dropout=0.25)
    with torch.no_grad():
        classifier.output.weight.copy_(torch.eye(4)[:, :, None, None])
        classifier.output.bias.zero_()  # type: ignore[union-attr]
    maps = torch.rand(2, 4, 3, 3) + 1
    draws = torch.tensor([[0.0, 0.24, 0.25, 0.9], [0.9, 0.9, 0.9, 0.1]])
    kept = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])[:, :, None, None] / 0.75
    torch.testing.assert_close(classifier(maps, draws), maps * kept)
    torch.testing.assert_close(classifier.eval()(maps, draws), maps)


def test_doublings_from_patch_to_pixel() -> None:
    sides = [upsampling_steps((side, side)) for side in (1, 2, 4, 8, 14, 16, 32)]
    assert sides == [1, 1, 2, 3, 4, 4, 5]


def _progressive(**changes: Any) -> ProgressiveUpsampling:
    config = decoder_config("pup", ENCODER, 5, channels=16, **changes)
    return ProgressiveUpsampling(config, ENCODER.width, ENCODER.patch_size).eval()


def test_classifying_before_the_last_doubling_is_setr_s_after_it() -> None:
    decoder = _progressive()
    maps = torch.randn(2, ENCODER.width, 4, 6)
    tokens = maps.flatten(2).transpose(1, 2)
    normal = functional.layer_norm(tokens, (ENCODER.width,), eps=1e-6)
    features = normal.transpose(1, 2).unflatten(2, (4, 6))  # type: ignore[no-untyped-call]
    for convolution in decoder.convolutions:  # SETR's order: convolution, norm, ReLU, doubling
        size = (2 * features.shape[2], 2 * features.shape[3])
        features = resized(convolution(features), size)
    whole = decoder.classifier(features)
    assert whole.shape == (2, 5, *ENCODER.image_size)
    logits = decoder([maps])
    assert logits.shape == (2, 5, 32, 48)
    torch.testing.assert_close(resized(logits, ENCODER.image_size), whole)


def _upernet(**changes: Any) -> tuple[UPerNet, DecoderConfig]:
    config = decoder_config("upernet", ENCODER, 5, channels=16, **changes)
    return UPerNet(config, ENCODER.width, (4, 6)).eval(), config


def test_the_pyramid_has_its_sizes() -> None:
    decoder, config = _upernet()
    maps = [torch.randn(1, ENCODER.width, 4, 6) for _ in config.layers]
    features = decoder.rescaled(maps)
    sizes = [tuple(feature.shape[2:]) for feature in features]
    assert sizes == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert features[2] is maps[2]
    assert decoder(features).shape == (1, 5, 16, 24)


def test_every_level_of_the_pyramid_is_read() -> None:
    decoder, config = _upernet()
    maps = [torch.randn(1, ENCODER.width, 4, 6, requires_grad=True) for _ in config.layers]
    decoder(decoder.rescaled(maps)).square().sum().backward()
    for values in maps:
        assert values.grad is not None and values.grad.abs().sum() > 0


def test_grids_too_small_for_the_pyramid_are_refused() -> None:
    config = decoder_config("upernet", ENCODER, 5)
    with pytest.raises(UserError, match="1x6 patches"):
        UPerNet(config, ENCODER.width, (1, 6))
