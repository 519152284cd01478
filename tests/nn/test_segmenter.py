"""The segmenter: where its maps come from, what it reads, and that pictures are treated singly."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beit.errors import UserError
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import decoder_config
from beit.nn.decoders import ProgressiveUpsampling
from beit.nn.encoder import Encoder
from beit.nn.segmenter import Segmenter, build_segmenter

KINDS = ("pup", "upernet")


def build(
    kind: Any, *, patch: tuple[int, int] = (8, 8), drop_path: float = 0.0, **more: Any
) -> Segmenter:
    torch.manual_seed(0)
    size = (4 * patch[0], 6 * patch[1])
    config = EncoderConfig(size, patch, width=32, depth=4, heads=2, drop_path=drop_path)
    settings = {"channels": 16, "auxiliary_channels": 8, "auxiliary": True, **more}
    return build_segmenter(Encoder(config), decoder_config(kind, config, 5, **settings))


def pictures(segmenter: Segmenter, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *segmenter.encoder.config.image_size)


@pytest.mark.parametrize("patch", [(4, 4), (7, 7), (8, 8), (8, 16), (16, 16)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_patch_and_any_rectangle(kind: str, patch: tuple[int, int]) -> None:
    segmenter = build(kind, patch=patch, pyramid=(2.0, 1.0, 1.0, 0.5)).eval()
    output = segmenter(pictures(segmenter))
    assert output.logits.shape[:2] == (2, 5) and output.auxiliary is not None
    height, width = output.logits.shape[2:]
    assert height * 6 == width * 4  # the grid's shape is kept
    assert output.auxiliary.shape == (2, 5, 4, 6)


def test_without_an_auxiliary_head_there_is_no_second_output() -> None:
    segmenter = build("upernet", auxiliary=False).eval()
    assert segmenter.auxiliary is None
    assert segmenter(pictures(segmenter)).auxiliary is None


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_the_named_layers_row_by_row(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = build(kind).eval()
    seen: list[Tensor] = []
    rescaled = segmenter.decoder.rescaled

    def watched(maps: Sequence[Tensor]) -> list[Tensor]:
        seen.extend(maps)
        return rescaled(maps)

    monkeypatch.setattr(segmenter.decoder, "rescaled", watched)
    images = pictures(segmenter)
    segmenter(images)
    layers = segmenter.config.layers
    expected = segmenter.encoder(images, layers=layers).layers
    assert len(seen) == len(layers)
    for found, tokens in zip(seen, expected, strict=True):
        for row, column in ((0, 0), (1, 0), (2, 5), (3, 1)):
            assert torch.equal(found[:, :, row, column], tokens[:, 1 + row * 6 + column])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_after_the_last_that_is_read_do_not_run(kind: str) -> None:
    layers = (0, 1) if kind == "pup" else (0, 0, 1, 2)
    segmenter = build(kind, layers=layers, norm="group").train()
    unread = segmenter.unread_parameters()
    state = dict(segmenter.named_parameters())
    assert {name.split(".")[2] for name in unread if "blocks" in name} == {
        str(number) for number in range(max(layers) + 1, 4)
    }
    with torch.no_grad():
        for name in unread:
            state[name].fill_(float("nan"))
    ran: list[int] = []
    for number, block in enumerate(segmenter.encoder.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    output = segmenter(pictures(segmenter))
    assert ran == list(range(max(layers) + 1))
    assert output.logits.isfinite().all()
    torch.autograd.backward([output.logits.square().sum(), output.auxiliary.square().sum()])
    without = {name for name, parameter in state.items() if parameter.grad is None}
    assert without == unread


@pytest.mark.parametrize("kind", KINDS)
def test_with_group_norm_pictures_are_treated_singly(kind: str) -> None:
    segmenter = build(kind, norm="group", drop_path=0.5).train()
    images = pictures(segmenter, 3)
    paths, channels = torch.rand(3, 8), torch.rand(3, segmenter.channel_draws)
    whole = segmenter(images, paths, channels)
    for number in range(3):
        row = slice(number, number + 1)
        single = segmenter(images[row], paths[row], channels[row])
        torch.testing.assert_close(single.logits, whole.logits[row], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(single.auxiliary, whole.auxiliary[row], atol=1e-5, rtol=1e-4)
    other = segmenter(images, paths, channels.flip(0))
    assert not torch.allclose(other.logits, whole.logits)


def test_draws_of_the_two_heads_do_not_overlap() -> None:
    segmenter = build("pup", norm="group").train()
    images, keep = pictures(segmenter, 1), torch.full((1, segmenter.channel_draws), 0.9)
    assert segmenter.channel_draws == 16 + 8
    plain = segmenter(images, None, keep)
    first, second = keep.clone(), keep.clone()
    first[:, :16], second[:, 16:] = 0.0, 0.0
    assert isinstance(segmenter.decoder, ProgressiveUpsampling)
    bias = segmenter.decoder.classifier.output.bias
    dropped = segmenter(images, None, first)
    assert bias is not None and torch.equal(
        dropped.logits, bias[None, :, None, None].expand_as(dropped.logits)
    )
    assert torch.equal(dropped.auxiliary, plain.auxiliary)
    assert torch.equal(segmenter(images, None, second).logits, plain.logits)


def test_batch_norm_wants_more_than_one_picture_to_train() -> None:
    segmenter = build("upernet", norm="batch").train()
    with pytest.raises(UserError, match="norm group"):
        segmenter(pictures(segmenter, 1))
    segmenter(pictures(segmenter, 2))
    segmenter.eval()(pictures(segmenter, 1))


def test_a_layer_too_many_is_refused() -> None:
    with pytest.raises(UserError, match="reads layer 4, and this encoder has 0 to 3"):
        build("upernet", layers=(0, 1, 2, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_initial_values(kind: str) -> None:
    segmenter = build(kind, channels=64)
    convolutions = [m for m in segmenter.decoder.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) > 2
    for convolution in convolutions:
        spread = float(convolution.weight.detach().std())
        if convolution.bias is None:
            fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
            assert spread == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        else:
            assert spread == pytest.approx(0.01, rel=0.2) and not convolution.bias.any()
