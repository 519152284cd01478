"""Segmentation with a decoder of one's own: trained, resumed, measured, loaded, refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import beit
from beit.commands.assembly.saved_models import save_segmenter
from beit.errors import UserError
from beit.files import sha256_of
from beit.nn import own_decoder
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import DecoderConfig, decoder_config
from beit.nn.own_decoder import register
from beit.nn.segmenter import Segmenter
from commands.fine_tuning_runs import SEGMENT, halves
from commands.recipe_runs import beit as command


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(own_decoder, "_MAKERS", {})
    yield


class Plain(nn.Module):
    """One convolution on the sum of what is read, dropout before it."""

    def __init__(self, config: DecoderConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(0.5)
        self.output = nn.Conv2d(encoder.width, config.classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        assert len(maps) == 2
        logits: Tensor = self.output(self.dropout(maps[0] + maps[1]))
        return logits


SMALL = {**SEGMENT, "decoder.kind": "plain", "decoder.layers": [0, 1]}


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(halves(tmp_path / "halves"))


def test_it_trains_resumes_exactly_and_is_loaded_where_it_is_registered(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="there is no decoder 'plain': choose one of 'pup', 'upe"):
        beit.segment("digits", data, tmp_path / "no", init="none", changes=SMALL)
    register("plain", Plain)
    run, stopped = tmp_path / "run", tmp_path / "stopped"
    found = beit.segment("digits", data, run, init="none", changes=SMALL)

    def stop(task: nn.Module, step: int) -> None:
        if step == 5:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        beit.segment("digits", data, stopped, init="none", changes=SMALL, after_step=stop)
    beit.segment("digits", data, stopped, init="none", changes=SMALL, resume=True)
    assert sha256_of(run / "model.safetensors") == sha256_of(stopped / "model.safetensors")

    measured = beit.evaluate(run, data, quiet=True)
    assert measured["miou"] == pytest.approx(found["validation"]["miou"])
    assert beit.write_report(run).is_file()
    beit.push(run, tmp_path / "pushed", licence="mit")
    card = (tmp_path / "pushed" / "README.md").read_text()
    assert "its decoder `plain` is registered by" in card and "beit predict" not in card
    model = beit.load(run)
    assert isinstance(model, Segmenter) and isinstance(model.decoder.module, Plain)
    other = beit.load(run)
    assert isinstance(other, Segmenter) and other.decoder is not model.decoder
    beit.segment("digits", data, tmp_path / "on", init=run, changes=SMALL)
    assert not json.loads((tmp_path / "on" / "initial.json").read_text())["not_used"]

    monkeypatch.setattr(own_decoder, "_MAKERS", {})
    asked = "decoder 'plain', which is none of beit's own: load it from Python, once"
    with pytest.raises(UserError, match=asked):
        beit.load(run)
    outcome = command("predict", str(run), data, "--out", str(tmp_path / "masks"))
    assert outcome.status == 2 and "registered by beit.nn.own_decoder.register" in outcome.err


class Counting(Plain):
    """Not made alike once it was used."""

    def __init__(self, config: DecoderConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.seen = 0

    def forward(self, maps: list[Tensor]) -> Tensor:
        self.seen += 1
        return super().forward(maps)


class Tokens(Plain):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return super().forward(maps).flatten(2)


def always_the_same() -> Callable[..., nn.Module]:
    kept: list[nn.Module] = []

    def make(config: DecoderConfig, encoder: EncoderConfig) -> nn.Module:
        kept.append(Plain(config, encoder))
        return kept[0]

    return make


def of_chance_width() -> Callable[..., nn.Module]:
    widths = iter((3, 4))

    def make(config: DecoderConfig, encoder: EncoderConfig) -> nn.Module:
        decoder = Plain(config, encoder)
        decoder.unused = nn.Linear(next(widths), 1)
        return decoder

    return make


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (Counting, "decoder.module has seen 1, where beit's own has 0"),
        (Tokens, r"gives \(2, 2, 64\) for 2 pictures: it must be logits of shape \(2, 2, height"),
        (always_the_same(), "gives the same module twice"),
        (of_chance_width(), "cannot be saved as a segmenter: decoder.module.unused"),
        (lambda config, encoder: 7, "makes a int: it must make a torch.nn.Module"),
    ],
)
def test_what_could_not_be_used_is_refused_before_a_run_is_made(
    make: Callable[..., Any], complaint: str, data: str, tmp_path: Path
) -> None:
    register("plain", make)
    with pytest.raises(UserError, match=complaint):
        beit.segment("digits", data, tmp_path / "run", init="none", changes=SMALL)
    assert not (tmp_path / "run").exists()


def test_another_decoder_of_the_same_name_is_not_loaded(data: str, tmp_path: Path) -> None:
    register("plain", Plain)
    beit.segment("digits", data, tmp_path / "run", init="none", changes=SMALL)
    register("plain", lambda config, encoder: nn.Sequential(Plain(config, encoder)))
    with pytest.raises(UserError, match="no weight 'decoder.module.0.output.bias'"):
        beit.load(tmp_path / "run")
    with pytest.raises(UserError, match="decoder.module"):
        beit.segment("digits", data, tmp_path / "run", init="none", changes=SMALL, resume=True)


def test_a_decoder_put_into_a_model_is_not_saved_as_ours(data: str, tmp_path: Path) -> None:
    register("plain", Plain)
    beit.segment("digits", data, tmp_path / "run", init="none", changes=SMALL)
    model = beit.load(tmp_path / "run")
    assert isinstance(model, Segmenter) and isinstance(model.decoder, own_decoder.OwnDecoder)
    save_segmenter(tmp_path / "again", model, {})
    model.decoder.module = Tokens(model.config, model.encoder.config)
    with pytest.raises(UserError, match="decoder.module is a Tokens, where beit's own is a Plain"):
        save_segmenter(tmp_path / "changed", model, {})


@pytest.mark.parametrize(
    ("name", "make", "complaint"),
    [
        ("pup", Plain, "'pup' is beit's own"),
        ("", Plain, "under a name, a text"),
        ("plain", None, "needs a function or class that makes it, no NoneType"),
        ("plain", nn.Identity(), "a function or class that makes it, no Identity"),
    ],
)
def test_what_cannot_be_registered(name: str, make: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        register(name, make)


def test_layers_are_any_that_the_encoder_has() -> None:
    register("plain", Plain)
    encoder = beit.encoder("digits", image_size=16, patch_size=4)
    config = decoder_config("plain", encoder.config, 3)
    assert (config.layers, config.channels, config.auxiliary) == ((0, 1, 2, 3), 64, False)
    with pytest.raises(UserError, match="reads 2 or more layers"):
        decoder_config("plain", encoder.config, 3, layers=(3,), auxiliary=True)
