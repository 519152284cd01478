"""TF32 is off where float32 is promised, and the caller's afterwards."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.precision import exact, full_float32
from beit.tokenizer.reading import TokenReader
from tokenizer.small_tokenizer import SMALL, small_tokenizer

BACKENDS: Any = torch.backends


def _settings() -> tuple[str, str]:
    return BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cuda.matmul.fp32_precision


def _new_interface(convolution: str, product: str) -> None:
    BACKENDS.cudnn.conv.fp32_precision = convolution
    BACKENDS.cuda.matmul.fp32_precision = product


@pytest.fixture(autouse=True)
def _kept_settings() -> Iterator[None]:
    before = _settings()
    yield
    _new_interface(*before)


@pytest.mark.parametrize("convolution", ["tf32", "ieee", "none"])
@pytest.mark.parametrize("product", ["tf32", "ieee", "none"])
def test_no_tf32_inside_and_the_callers_settings_after(convolution: str, product: str) -> None:
    _new_interface(convolution, product)
    with pytest.raises(KeyError), full_float32():
        assert "tf32" not in _settings()
        raise KeyError
    assert _settings() == (convolution, product)


@pytest.mark.filterwarnings("ignore:Please use the new API")  # the older one, on purpose
def test_the_older_interface_answers_as_before() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_float32():
            assert "tf32" not in _settings()
        assert torch.get_float32_matmul_precision() == "high"
        assert BACKENDS.cuda.matmul.allow_tf32 and BACKENDS.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_cpu_is_left_alone_but_for_autocast() -> None:
    _new_interface("tf32", "tf32")
    product = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), exact(torch.device("cpu")):
        assert _settings() == ("tf32", "tf32") and (product @ product).dtype == torch.float32


READERS: dict[str, Callable[[DiscreteVAE, torch.Tensor], torch.Tensor]] = {
    "the tokenizer's own": lambda tokenizer, images: tokenizer.codes(images),
    "a reader's": lambda tokenizer, images: TokenReader(tokenizer).codes(images),
    "a reader's at places": lambda tokenizer, images: TokenReader(tokenizer).codes_at(
        images, torch.zeros(len(images), 1, dtype=torch.int64)
    ),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_exact_codes_are_computed_without_tf32(
    read: Callable[[DiscreteVAE, torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU plays the GPU: what counts is the settings that convolutions meet."""
    tokenizer = small_tokenizer().eval()
    met: list[tuple[str, str]] = []
    for module in (tokenizer.encoder[0], tokenizer.head):
        module.register_forward_pre_hook(lambda *_: met.append(_settings()))
    for name in ("dvae", "reading"):
        monkeypatch.setattr(f"beit.tokenizer.{name}.exact", lambda device: full_float32())
    _new_interface("tf32", "tf32")
    read(tokenizer, torch.rand(2, 3, *SMALL.image_size))
    assert len(met) == 2 and not any("tf32" in settings for settings in met)
    assert _settings() == ("tf32", "tf32")
