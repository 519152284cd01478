import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from beit.errors import UserError
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.storage import fingerprint, load, save
from tokenizer.small_tokenizer import SMALL, small_tokenizer


@pytest.fixture
def model() -> DiscreteVAE:
    return small_tokenizer()


@pytest.mark.parametrize(
    "changes", [{}, {"gaussian_variance": 0.02}, {"head": "linear", "decoder_input": "separate"}]
)
def test_round_trip(tmp_path: Path, changes: dict[str, object]) -> None:
    model = DiscreteVAE(replace(SMALL, **changes))  # type: ignore[arg-type]
    save(model, tmp_path / "new" / "tokenizer")
    loaded = load(tmp_path / "new" / "tokenizer")
    assert loaded.config == model.config
    assert not loaded.training
    assert fingerprint(loaded) == fingerprint(model)
    images = torch.rand(3, 3, 16, 24)
    assert torch.equal(loaded.codes(images), model.codes(images))
    assert torch.equal(loaded.reconstruct(images), model.reconstruct(images))


def test_a_channels_last_model_saves_the_same(tmp_path: Path, model: DiscreteVAE) -> None:
    before = fingerprint(model)
    save(model.to(memory_format=torch.channels_last), tmp_path)  # type: ignore[call-overload]
    assert fingerprint(load(tmp_path)) == before


def test_description_says_what_pre_training_needs(tmp_path: Path, model: DiscreteVAE) -> None:
    save(model, tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["kind"] == "tokenizer"
    assert description["vocabulary"] == 11
    assert description["image_size"] == [16, 24]
    assert description["grid"] == [2, 3]
    assert description["fingerprint"] == fingerprint(model)


def test_fingerprint_sees_weights_and_configuration(model: DiscreteVAE) -> None:
    before = fingerprint(model)
    other = DiscreteVAE(replace(SMALL, cosine_scale=5.0))
    other.load_state_dict(model.state_dict())
    assert fingerprint(other) != before
    with torch.no_grad():
        model.code_vectors[0, 0] += 1e-3
    assert fingerprint(model) != before


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("not json", "not JSON"),
        ("[1]", "does not describe a tokenizer"),
        ('{"kind": "encoder"}', "does not describe a tokenizer"),
        ('{"kind": "tokenizer", "family": "vqgan"}', "vqgan"),
        ('{"kind": "tokenizer", "family": "dvae"}', "has no 'config'"),
        ('{"kind": "tokenizer", "family": "dvae", "config": {"wings": 2}}', "wings"),
        (
            '{"kind": "tokenizer", "family": "dvae", "config": {"vocabulary": "many"}}',
            "values no tokenizer can have",
        ),
    ],
)
def test_foreign_descriptions_are_refused(
    tmp_path: Path, model: DiscreteVAE, text: str, culprit: str
) -> None:
    save(model, tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=culprit):
        load(tmp_path)


def test_foreign_weights_are_refused(tmp_path: Path, model: DiscreteVAE) -> None:
    save(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match="safetensors"):
        load(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path, model: DiscreteVAE) -> None:
    save(model, tmp_path)
    description = (tmp_path / "config.json").read_text()
    save(DiscreteVAE(replace(SMALL, vocabulary=12)), tmp_path)
    (tmp_path / "config.json").write_text(description)
    with pytest.raises(UserError, match="does not fit"):
        load(tmp_path)


def test_changed_weights_are_refused(tmp_path: Path, model: DiscreteVAE) -> None:
    save(model, tmp_path)
    description = (tmp_path / "config.json").read_text()
    torch.manual_seed(1)
    save(DiscreteVAE(SMALL), tmp_path)
    (tmp_path / "config.json").write_text(description)
    with pytest.raises(UserError, match="fingerprint"):
        load(tmp_path)
