"""A model's folder is data: it loads to the same numbers, or says in a sentence why not."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from beit.batch import Masks
from beit.commands.assembly.saved_models import (
    load,
    load_masked_image_model,
    save_classifier,
    save_encoder,
    save_masked_image_model,
)
from beit.errors import UserError
from beit.interop.weight_files import read_metadata, read_tensors
from beit.nn.attention import Attention
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead, MaskedPixelHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.tokenizer import storage
from beit.tokenizer.config import DiscreteVAEConfig
from beit.tokenizer.dvae import DiscreteVAE

CONFIG = EncoderConfig(
    (8, 12), (4, 4), width=8, depth=2, heads=2, relative_positions="shared", layer_scale=0.1
)
VAE = DiscreteVAEConfig(
    image_size=(8, 8),
    vocabulary=4,
    encoder_widths=(8,),
    encoder_blocks=(1,),
    decoder_widths=(8,),
    decoder_blocks=(1,),
    embedding_width=8,
    code_width=4,
)


@pytest.mark.parametrize("head", [MaskedTokenHead(8, 5), MaskedPixelHead(8, 48)])
def test_a_pre_trained_model_comes_back_as_it_was(tmp_path: Path, head: Any) -> None:
    torch.manual_seed(0)
    model = MaskedImageModel(Encoder(CONFIG), head)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_masked_image_model(tmp_path, model, {"recipe": "x"})
    read = load_masked_image_model(tmp_path)
    assert type(read.head) is type(head) and read.encoder.config == CONFIG and not read.training
    images, index = torch.randn(3, 3, 8, 12), torch.arange(6).expand(3, 6)
    masks = Masks(torch.rand(3, 2, 3) < 0.4, index, torch.ones(3, 6))
    with torch.no_grad():
        assert read(images, masks).equal(model.eval()(images, masks))
    assert json.loads((tmp_path / "config.json").read_text())["recipe"] == "x"
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_a_tokenizer_comes_back_as_it_was(tmp_path: Path) -> None:
    model = DiscreteVAE(VAE).eval()
    for _ in range(2):  # also over what is there
        storage.save(model, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    read = load(tmp_path)
    assert isinstance(read, DiscreteVAE)
    images = torch.rand(4, 3, 8, 8)
    assert read.codes(images).equal(model.codes(images))
    with pytest.raises(UserError, match="holds a tokenizer; a pre-trained model is wanted"):
        load_masked_image_model(tmp_path)


class Turned(Attention):
    """An attention of somebody's own, without a parameter more."""


class Largest(ClassifierHead):
    """A head that pools in another way."""

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.output(self.norm(tokens.amax(1)))
        return found


def _turned(model: Any) -> None:
    model.encoder.blocks[1].attention.__class__ = Turned


def _other_epsilon(model: Any) -> None:
    model.encoder.blocks[1].mlp_norm.eps = 1e-5


def _other_heads(model: Any) -> None:
    model.encoder.blocks[0].attention.heads = 4


def _own_method(model: Any) -> None:
    model.encoder.blocks[0].mlp.forward = nn.Identity().forward


def _shorter(model: Any) -> None:
    model.encoder.blocks = model.encoder.blocks[:1]


def _other_head(model: Any) -> None:
    model.head = nn.Sequential(nn.Linear(8, 5))


def _gradients(model: Any) -> None:
    model.head = MaskedPixelHead(8, 9)


def _no_bias(model: Any) -> None:
    model.head.output = nn.Linear(8, 5, bias=False)


CHANGES: dict[Callable[[Any], None], str] = {
    _turned: "encoder.blocks.1.attention is a Turned",
    _other_epsilon: "encoder.blocks.1.mlp_norm has eps 1e-05",
    _other_heads: "encoder.blocks.0.attention has heads 4",
    _own_method: "encoder.blocks.0.mlp has a forward of its own",
    _shorter: "encoder.blocks.1 is missing",
    _other_head: "its head is a Sequential",
    _gradients: "48 pixels of a patch has 9 outputs",
    _no_bias: "head.output.bias is missing",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_is_not_saved_as_what_it_is_not(
    tmp_path: Path, change: Callable[[Any], None]
) -> None:
    model = MaskedImageModel(Encoder(CONFIG), MaskedTokenHead(8, 5))
    change(model)
    with pytest.raises(UserError, match=r"keep its state_dict\(\) with torch\.save") as refused:
        save_masked_image_model(tmp_path / "model", model, {})
    assert CHANGES[change] in str(refused.value)
    assert not (tmp_path / "model").exists()


def test_nor_are_encoders_classifiers_and_tokenizers(tmp_path: Path) -> None:
    encoder = Encoder(CONFIG)
    with pytest.raises(UserError, match="saved as a classifier: its head is a Largest"):
        save_classifier(tmp_path, Classifier(encoder, Largest(8, 3)), {})
    encoder.blocks[0].attention.__class__ = Turned
    with pytest.raises(UserError, match=r"an encoder without a head: blocks.0.attention"):
        save_encoder(tmp_path, encoder, {})
    tokenizer: Any = DiscreteVAE(VAE)
    tokenizer.decode_codes = tokenizer.decode
    with pytest.raises(UserError, match="saved as a tokenizer: it has a decode_codes of its own"):
        storage.save(tokenizer, tmp_path)


def test_what_only_training_sees_is_no_difference(tmp_path: Path) -> None:
    """Compiled in place, watched, frozen, in another precision: the same model."""
    model = MaskedImageModel(Encoder(CONFIG), MaskedTokenHead(8, 5)).bfloat16()
    model.compile(backend="eager")
    model.head.register_forward_hook(lambda *found: None)
    model.encoder.requires_grad_(False)
    before = torch.get_rng_state()
    save_masked_image_model(tmp_path, model, {})
    assert torch.get_rng_state().equal(before)
    read = load_masked_image_model(tmp_path)
    assert read.head.output.weight.equal(model.head.output.weight.float())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = MaskedImageModel(Encoder(CONFIG), MaskedTokenHead(8, 5))
    save_masked_image_model(tmp_path, model, {})
    return tmp_path


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"kind": "zip"}, "kind 'zip'"),
    "no encoder": ({"encoder": None}, "does not describe an encoder"),
    "an unknown field": ({"encoder": {"size": 3}}, "does not describe an encoder"),
    "impossible sizes": ({"encoder": {"width": 9}}, "does not describe an encoder"),
    "no head": ({"head": {}}, "does not describe an encoder"),
    "another head": ({"head": {"target": "words", "outputs": 5}}, "a head for 'words'"),
    "nothing to predict": ({"head": {"target": "tokens", "outputs": -1}}, "with -1 outputs"),
    "another size": (
        {"head": {"target": "tokens", "outputs": 6}},
        "does not fit: .* has shape .5,",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_wrong_description_is_refused(saved: Path, name: str) -> None:
    changes, sentence = DAMAGE[name]
    config = json.loads((saved / "config.json").read_text())
    for key, value in changes.items():
        merge = key == "encoder" and isinstance(value, dict)
        config[key] = {**config[key], **value} if merge else value
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        load(saved)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_description_that_is_none_is_refused(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load(saved)
    with pytest.raises(UserError, match="no finished model"):
        load(saved / "nothing")


def test_wrong_weights_are_refused(saved: Path) -> None:
    file = saved / "model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    save_file({name: value for name, value in tensors.items() if name != first}, file)
    with pytest.raises(UserError, match=f"does not fit: no weight '{first}'"):
        load(saved)
    save_file({**tensors, "more": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="does not fit: unexpected weight 'more'"):
        load(saved)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load(saved)
    file.unlink()
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load(saved)


def test_weights_that_cannot_be_opened_are_not_called_missing(tmp_path: Path) -> None:
    save_masked_image_model(tmp_path, MaskedImageModel(Encoder(CONFIG), MaskedTokenHead(8, 5)), {})
    weights = tmp_path / "model.safetensors"
    weights.unlink()
    weights.symlink_to(weights.name)  # a right that is missing would do, but not for root
    with pytest.raises(UserError, match=r"model\.safetensors .*Too many levels of symbolic links"):
        load(tmp_path)


def test_a_folder_whose_name_is_not_utf8_is_read(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"m\xff")
    model = MaskedImageModel(Encoder(CONFIG), MaskedTokenHead(8, 5))
    save_masked_image_model(folder, model, {})
    assert load_masked_image_model(folder).encoder.config == CONFIG
    tokenizer = DiscreteVAE(VAE)
    storage.save(tokenizer, folder)
    assert storage.fingerprint(storage.load(folder)) == storage.fingerprint(tokenizer)
    assert set(read_tensors(folder / "model.safetensors")) == set(tokenizer.state_dict())
    assert read_metadata(folder / "model.safetensors") == {}
