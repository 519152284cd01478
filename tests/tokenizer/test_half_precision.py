"""Encoder and output layer as they are rebuilt for fast kernels: what they compute stays."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beit.tokenizer.config import DiscreteVAEConfig, dalle_config
from beit.tokenizer.dvae import DiscreteVAE, scaled_pixels
from beit.tokenizer.half_precision import RowHead, SlicedPooling, cheap_encoder
from beit.tokenizer.presets import PRESETS
from beit.tokenizer.reading import Precision, TokenReader, agreement

SMALL_DALLE = replace(
    dalle_config((32, 32), 40), encoder_widths=(8, 8, 16, 16), decoder_widths=(16, 16, 8, 8)
)
CONFIGS = {"cosine": PRESETS["digits"], "linear": SMALL_DALLE}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
# B images, (h, w) grid, M listed places


def vae(config: DiscreteVAEConfig) -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(config).eval()


def images(config: DiscreteVAEConfig, count: int = 9) -> Tensor:
    return torch.rand(count, 3, *config.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sliced_pooling", [False, True])
@pytest.mark.parametrize("padded_stem", [False, True])
@each_config
@torch.no_grad()
def test_the_rebuilt_encoder_computes_what_the_plain_one_does(
    config: DiscreteVAEConfig, padded_stem: bool, sliced_pooling: bool
) -> None:
    encoder = vae(config).encoder
    before = torch.get_rng_state()
    cheap = cheap_encoder(
        encoder, torch.float32, padded_stem=padded_stem, sliced_pooling=sliced_pooling
    )
    assert torch.equal(torch.get_rng_state(), before)
    pixels = scaled_pixels(images(config), config).contiguous(memory_format=torch.channels_last)
    found, expected = cheap(pixels), encoder(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    pools = sum(isinstance(layer, nn.MaxPool2d) for layer in encoder)
    assert sum(isinstance(layer, SlicedPooling) for layer in cheap) == pools * sliced_pooling
    stem_channels = next(p.shape[1] for p in cheap.parameters() if p.dim() == 4)
    assert stem_channels == (8 if padded_stem else 3)
    assert isinstance(encoder[0], nn.Conv2d) and encoder[0].in_channels == 3, "left alone"


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_the_maximum_of_slices_is_max_pooling(size: tuple[int, int]) -> None:
    features = torch.randn(2, 4, *size).contiguous(memory_format=torch.channels_last)
    features[0, 0, 1, 1] = torch.nan
    found, expected = SlicedPooling()(features), nn.MaxPool2d(2)(features)
    assert torch.equal(found.nan_to_num(9), expected.nan_to_num(9)) and found.isnan().any()


def by_rows(config: DiscreteVAEConfig, dtype: torch.dtype) -> TokenReader:
    """A reader that takes the device's way through the output layer, on a CPU."""
    reader = TokenReader(vae(config), "float16")
    reader._row_head = RowHead(reader.model.head, dtype)
    return reader


@each_config
@pytest.mark.parametrize("count", [1, 9])
def test_rows_give_the_codes_of_the_convolution(config: DiscreteVAEConfig, count: int) -> None:
    rows, plain = by_rows(config, torch.float32), TokenReader(vae(config), "float16")
    assert rows.model.head.bias is not None
    nn.init.normal_(rows.model.head.bias, std=0.3)
    plain.model.load_state_dict(rows.model.state_dict())
    rows._row_head = RowHead(rows.model.head, torch.float32)
    views = images(config, count)
    expected = plain.codes(views)
    assert torch.equal(rows.codes(views), expected)
    index = torch.rand(count, config.grid[0] * config.grid[1]).argsort(1)[:, :5]
    expected = expected.flatten(1).gather(1, index)
    assert torch.equal(rows.codes_at(views, index), expected)


@each_config
def test_half_precision_weights_of_the_output_layer_change_few_codes(
    config: DiscreteVAEConfig,
) -> None:
    plain, views = TokenReader(vae(config), "float16"), images(config, 60)
    found = agreement(by_rows(config, torch.float16).codes(views), plain.codes(views))
    assert 0.98 <= found.share <= 1.0


@each_config
def test_compiled_is_the_same_but_for_rounding(
    config: DiscreteVAEConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend that rounds as eager does: a graph for each size of batch, the same codes."""
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    original = nn.Module.compile
    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", lambda module: original(module, backend=counting))
    tokens = TokenReader(vae(config), "bfloat16", compiled=True)
    plain, views = TokenReader(vae(config), "bfloat16"), images(config)
    assert torch.equal(tokens.codes(views), plain.codes(views))
    assert len(graphs) == 1
    assert torch.equal(tokens.codes(views[:2]), plain.codes(views[:2]))
    assert len(graphs) <= 2
    TokenReader(vae(config), "float32", compiled=True).codes(views)
    assert len(graphs) <= 2, "float32 is never compiled"


def test_the_devices_parts_are_one_graph_each() -> None:
    """What a GPU would run compiled, with a backend that rounds as eager does."""
    torch.compiler.reset()
    graph = partial(torch.compile, fullgraph=True, backend="eager")
    model, views = vae(SMALL_DALLE), images(SMALL_DALLE)
    pixels = views.contiguous(memory_format=torch.channels_last)
    encoder = cheap_encoder(model.encoder, torch.float32, padded_stem=True, sliced_pooling=True)
    with torch.no_grad():
        hidden = encoder(pixels)
        assert torch.equal(graph(encoder)(pixels), hidden)
        head = RowHead(model.head, torch.float16)
        nn.init.normal_(head.bias)
        products = head.products(hidden.flatten(2).mT.flatten(0, 1).half())
        kept = products.clone()
        found = graph(head)(products)
        assert torch.equal(products, kept), "compiled, the largest tensor is not written again"
        assert torch.equal(found, head(products))


WIDER = replace(
    dalle_config((64, 64), 512), encoder_widths=(32, 32, 64, 128), decoder_widths=(128, 16, 8, 8)
)
ON_A_GPU = {"cosine": PRESETS["digits"], "linear": WIDER}
each_on_a_gpu = pytest.mark.parametrize("config", ON_A_GPU.values(), ids=ON_A_GPU)


def on_a_gpu(
    config: DiscreteVAEConfig, precision: Precision, compiled: bool = False
) -> TokenReader:
    return TokenReader(vae(config).cuda(), precision, compiled=compiled)


@pytest.mark.gpu
@each_on_a_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_codes_at_places_are_those_of_the_grid_on_a_gpu(
    config: DiscreteVAEConfig, precision: Precision
) -> None:
    tokens, views = on_a_gpu(config, precision), images(config, 64).cuda()
    index = torch.rand(64, config.grid[0] * config.grid[1], device="cuda").argsort(1)[:, :5]
    expected = tokens.codes(views).flatten(1).gather(1, index)
    found = tokens.codes_at(views, index)
    assert found.shape == (64, 5) and found.dtype == torch.int64
    assert agreement(found, expected).share == 1.0


@pytest.mark.gpu
@each_on_a_gpu
@pytest.mark.parametrize(
    ("precision", "share"), [("float32", 0.995), ("bfloat16", 0.9), ("float16", 0.95)]
)
def test_codes_of_a_gpu_are_those_of_a_cpu(
    config: DiscreteVAEConfig, precision: Precision, share: float
) -> None:
    views = images(config, 64)
    expected = TokenReader(vae(config)).codes(views)
    assert agreement(on_a_gpu(config, precision).codes(views.cuda()), expected).share >= share


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
@each_on_a_gpu
def test_compiled_codes_of_a_gpu_are_nearly_the_uncompiled(config: DiscreteVAEConfig) -> None:
    views = images(config, 64).cuda()
    plain, compiled = on_a_gpu(config, "float16"), on_a_gpu(config, "float16", compiled=True)
    assert agreement(compiled.codes(views), plain.codes(views)).share >= 0.98


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Please use the new API")  # the older one, on purpose
@each_on_a_gpu
def test_float32_on_a_gpu_is_not_tf32(config: DiscreteVAEConfig) -> None:
    """However the caller has set it: the logits' choice is the same to the last code."""
    views = images(config, 64).cuda()
    tokens = on_a_gpu(config, "float32")
    expected = tokens.codes(views)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.equal(tokens.codes(views), expected)
        assert torch.equal(tokens.model.codes(views), expected)
    finally:
        torch.set_float32_matmul_precision(before)
