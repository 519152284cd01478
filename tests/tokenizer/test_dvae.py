from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.tokenizer.config import dalle_config
from beit.tokenizer.dvae import DiscreteVAE, map_pixels, scaled_pixels, unmap_pixels
from beit.tokenizer.protocol import Tokenizer
from tokenizer.small_tokenizer import SMALL

VARIANTS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "linear": {"head": "linear", "decoder_input": "separate"},
    "separate": {"decoder_input": "separate"},
    "logit-laplace": {"likelihood": "logit-laplace"},
    "fixed variance": {"gaussian_variance": 0.02},
    "two decoder groups": {"decoder_widths": (16, 8), "decoder_blocks": (1, 1)},
    "pooled": {"downsampling": "max-pool", "encoder_blocks": (1, 1)},
    "stride 4": {"encoder_widths": (8,), "encoder_blocks": (1,)},
    "stride 2": {
        "encoder_widths": (8,),
        "encoder_blocks": (1,),
        "stem_stride": 2,
        "stem_kernel": 4,
    },
    "stride 16": {
        "image_size": (32, 48),
        "encoder_widths": (8, 8, 16),
        "encoder_blocks": (0, 1, 1),
    },
}


def build(**changes: Any) -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(replace(SMALL, **changes))


def test_dalles_parameter_counts() -> None:
    # facts of the published model: 53.8 M in the encoder, 43.8 M in the decoder
    with torch.device("meta"):
        model = DiscreteVAE(dalle_config())
    encoder = sum(p.numel() for part in (model.encoder, model.head) for p in part.parameters())
    decoder = sum(p.numel() for part in (model.embedding, model.decoder) for p in part.parameters())
    assert round(encoder / 1e6, 1) == 53.8
    assert round(decoder / 1e6, 1) == 43.8
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder


def _dalle_block(inputs: int, outputs: int, kernels: tuple[int, ...], gain: float) -> nn.Module:
    """DALL-E's residual block as its paper tells it, written the long way."""
    hidden = outputs // 4
    widths = (inputs, hidden, hidden, hidden, outputs)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.identity = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
            self.one, self.two, self.three, self.four = (
                nn.Conv2d(widths[i], widths[i + 1], kernels[i], padding=kernels[i] // 2)
                for i in range(4)
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(torch.relu(x))
            y = self.two(torch.relu(y))
            y = self.three(torch.relu(y))
            total: Tensor = self.identity(x) + gain * self.four(torch.relu(y))
            return total

    return Block()


def _slow_dalle(width: int, embedding: int, vocabulary: int) -> tuple[nn.Module, nn.Module]:
    encoder: list[nn.Module] = [nn.Conv2d(3, width, 7, padding=3)]
    inputs = width
    for group, factor in enumerate((1, 2, 4, 8)):
        for _ in range(2):
            encoder.append(_dalle_block(inputs, factor * width, (3, 3, 3, 1), 1 / 64))
            inputs = factor * width
        if group < 3:
            encoder.append(nn.MaxPool2d(2))
    encoder += [nn.ReLU(), nn.Conv2d(inputs, vocabulary, 1)]
    decoder: list[nn.Module] = [nn.Conv2d(vocabulary, embedding, 1)]
    inputs = embedding
    for group, factor in enumerate((8, 4, 2, 1)):
        for _ in range(2):
            decoder.append(_dalle_block(inputs, factor * width, (1, 3, 3, 3), 1 / 64))
            inputs = factor * width
        if group < 3:
            decoder.append(nn.Upsample(scale_factor=2, mode="nearest"))
    decoder += [nn.ReLU(), nn.Conv2d(inputs, 6, 1)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def test_dalles_architecture_equals_a_slow_derivation() -> None:
    torch.manual_seed(0)
    narrow = replace(
        dalle_config(image_size=(16, 24), vocabulary=13),
        encoder_widths=(8, 16, 32, 64),
        decoder_widths=(64, 32, 16, 8),
        embedding_width=12,
    )
    model = DiscreteVAE(narrow)
    encoder, decoder = _slow_dalle(8, 12, 13)
    ours = [*model.encoder.parameters(), *model.head.parameters()]
    for mine, theirs in zip(ours, encoder.parameters(), strict=True):
        theirs.data.copy_(mine.data)
    ours = [*model.embedding.parameters(), *model.decoder.parameters()]
    for mine, theirs in zip(ours, decoder.parameters(), strict=True):
        theirs.data.copy_(mine.data)
    images = torch.rand(2, 3, 16, 24)
    logits = encoder(0.8 * images + 0.1)
    torch.testing.assert_close(model.logits(images), logits)
    weights = logits.softmax(1)
    torch.testing.assert_close(model.decode(weights), decoder(weights))


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_of_every_variant(name: str) -> None:
    model = build(**VARIANTS[name])
    assert isinstance(model, Tokenizer)
    (height, width), (rows, columns) = model.image_size, model.grid
    assert (rows, columns) == (height // model.config.stride, width // model.config.stride)
    images = torch.rand(2, 3, height, width)
    logits = model.logits(images)
    assert logits.shape == (2, 11, rows, columns) and logits.dtype == torch.float32
    codes = model.codes(images)
    assert codes.shape == (2, rows, columns) and codes.dtype == torch.int64
    outputs = model.decode(logits.softmax(1))
    assert outputs.shape == (2, model.config.output_channels, height, width)
    pictures = model.reconstruct(images)
    assert pictures.shape == images.shape
    assert pictures.min() >= 0 and pictures.max() <= 1


@pytest.mark.parametrize("name", VARIANTS)
def test_codes_decode_as_their_one_hot_weights(name: str) -> None:
    model = build(**VARIANTS[name])
    for parameter in model.parameters():  # biases are born zero, and trained
        nn.init.normal_(parameter, std=0.3)
    codes = torch.randint(0, 11, (2, *model.grid))
    one_hot = functional.one_hot(codes, 11).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(model.decode_codes(codes), model.decode(one_hot))


def test_every_parameter_has_a_gradient() -> None:
    for changes in VARIANTS.values():
        model = build(**changes)
        outputs = model.decode(model.logits(torch.rand(2, 3, *model.image_size)).softmax(1))
        (outputs.square().mean() + model.log_variance).backward()  # type: ignore[no-untyped-call]
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing


def test_cosine_logits_are_bounded() -> None:
    model = build(cosine_scale=7.0)
    with torch.no_grad():
        model.head.weight.mul_(1000)
        model.code_vectors.mul_(1000)
    logits = model.logits(torch.rand(4, 3, 16, 24))
    assert logits.abs().max() <= 7.0 + 1e-4
    assert logits.abs().max() > 2.0


def test_codes_are_deterministic_and_independent_of_company_and_autocast() -> None:
    model = build()
    images = torch.rand(100, 3, 16, 24)
    codes = model.codes(images)
    assert torch.equal(codes, model.codes(images))
    assert torch.equal(codes[1:2], model.codes(images[1:2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codes, model.codes(images))
    cheap = model.codes(images, dtype=torch.bfloat16)
    assert 0.8 < (cheap == codes).float().mean() < 1, "else autocast would not be noticed"


def test_codes_carry_no_gradient() -> None:
    model = build()
    images = torch.rand(1, 3, 16, 24, requires_grad=True)
    assert not model.reconstruct(images).requires_grad
    assert model.codes(images).grad_fn is None


def test_pixel_maps_are_inverse() -> None:
    images = torch.rand(100)
    torch.testing.assert_close(unmap_pixels(map_pixels(images)), images)
    assert map_pixels(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.9])


def test_what_the_encoder_is_fed_stays_what_it_was() -> None:
    """Every kept tokenizer was trained on it."""
    pixels = torch.tensor([0.0, 0.5, 1.0])
    assert scaled_pixels(pixels, SMALL).tolist() == [-1, 0, 1]
    laplace = scaled_pixels(pixels, replace(SMALL, likelihood="logit-laplace"))
    assert laplace.tolist() == pytest.approx([0.1, 0.5, 0.9])


def test_undecayed_parameters_exist() -> None:
    model = build()
    assert model.undecayed_parameters() == {"code_vectors", "slow_log_variance"}
    assert (
        build(head="linear", decoder_input="separate", gaussian_variance=0.1).undecayed_parameters()
        == frozenset()
    )
