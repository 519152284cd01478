"""Models in files: a folder with `model.safetensors` and a `config.json` that says what they are.

Nothing in either file is executed. `kind` in the config says which of the models it is.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from beit.errors import UserError
from beit.files import atomic_write_bytes, atomic_write_text, for_safetensors, read_json_object
from beit.nn.classifier import Classifier
from beit.nn.decoder_config import decoder_config_from
from beit.nn.encoder import Encoder, EncoderConfig
from beit.nn.heads import ClassifierHead, MaskedPixelHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.own_decoder import known
from beit.nn.same_make import not_ours, refuse_other_make
from beit.nn.segmenter import Segmenter, build_segmenter
from beit.tokenizer import storage
from beit.tokenizer.dvae import DiscreteVAE

Model = DiscreteVAE | MaskedImageModel | Classifier | Segmenter | Encoder
Head = MaskedTokenHead | MaskedPixelHead | ClassifierHead

KIND = "masked-image-model"
CLASSIFIER_KIND = "classifier"
SEGMENTER_KIND = "segmenter"
ENCODER_KIND = "encoder"  # other people's backbones; ours come with their head
_NAMES: dict[type, str] = {
    DiscreteVAE: "a tokenizer",
    Encoder: "an encoder without a head",
    MaskedImageModel: "a pre-trained model",
    Classifier: "a classifier",
    Segmenter: "a segmenter",
}
_TUPLES = ("image_size", "patch_size")


def save_masked_image_model(
    folder: Path, model: MaskedImageModel, facts: Mapping[str, Any]
) -> None:
    """Write a pre-trained model; `facts` (its tokenizer, its recipe's name) go into config.json.

    Raises:
        UserError: It is not made as ours are, and would not be what is loaded again.
    """
    head = model.head
    _require(model, MaskedImageModel, MaskedTokenHead, MaskedPixelHead)
    if isinstance(head, MaskedPixelHead) and head.output.out_features != _pixels(model.encoder):
        raise not_ours(
            "a pre-trained model",
            f"its head for the {_pixels(model.encoder)} pixels of a patch has "
            f"{head.output.out_features} outputs",
        )
    described = {
        "kind": KIND,
        "format": 1,
        "encoder": asdict(model.encoder.config),
        "head": {
            "target": "tokens" if isinstance(head, MaskedTokenHead) else "pixels",
            "outputs": head.output.out_features,
        },
        **facts,
    }
    _write(folder, model, described)


def save_classifier(folder: Path, model: Classifier, facts: Mapping[str, Any]) -> None:
    """Write a classifier; `facts` (its recipe's name, how pictures are cut) go into config.json.

    Raises:
        UserError: It is not made as ours are, and would not be what is loaded again.
    """
    _require(model, Classifier, ClassifierHead)
    described = {
        "kind": CLASSIFIER_KIND,
        "format": 1,
        "encoder": asdict(model.encoder.config),
        "head": {"classes": model.classes, "pool": model.head.pool},
        "labels": list(model.labels),
        **facts,
    }
    _write(folder, model, described)


def save_segmenter(folder: Path, model: Segmenter, facts: Mapping[str, Any]) -> None:
    """Write a segmenter; `facts` (its recipe's name, how pictures are cut) go into config.json.

    Raises:
        UserError: It is not made as ours are, and would not be what is loaded again.
    """
    _require(model, Segmenter)
    _write(folder, model, {**_described_segmenter(model), **facts})


def refuse_unsavable(model: Segmenter) -> None:
    """See that a segmenter can be saved, before it is trained.

    Raises:
        UserError: It is not made as ours are, or its decoder is not made twice alike.
    """
    _require(model, Segmenter)
    refuse_other_make(model, _twin(Path(), _described_segmenter(model)), what(model))


def _described_segmenter(model: Segmenter) -> dict[str, Any]:
    return {
        "kind": SEGMENTER_KIND,
        "format": 1,
        "encoder": asdict(model.encoder.config),
        "decoder": asdict(model.config),
        "labels": list(model.labels),
    }


def save_encoder(folder: Path, encoder: Encoder, facts: Mapping[str, Any]) -> None:
    """Write an encoder without a head; `facts` (where it is from) go into config.json.

    Raises:
        UserError: It is not made as ours are, and would not be what is loaded again.
    """
    _require(encoder, Encoder)
    described = {"kind": ENCODER_KIND, "format": 1, "encoder": asdict(encoder.config), **facts}
    _write(folder, encoder, described)


def _pixels(encoder: Encoder) -> int:
    return encoder.config.patch_values


def _require(model: nn.Module, kind: type[Model], *heads: type[Head]) -> None:
    """See that what describes a model is of our own types; `_write` sees to the rest."""
    encoder = model if kind is Encoder else getattr(model, "encoder", None)
    parts: dict[str, tuple[object, tuple[type, ...]]] = {
        "it": (model, (kind,)),
        "its encoder": (encoder, (Encoder,)),
    }
    parts["the encoder's config"] = getattr(encoder, "config", None), (EncoderConfig,)
    if heads:
        parts["its head"] = getattr(model, "head", None), heads
    for name, (part, allowed) in parts.items():
        if type(part) not in allowed:
            ours = " or a ".join(one.__name__ for one in allowed)
            wrong = f"{name} is a {type(part).__qualname__}, where beit's own is a {ours}"
            raise not_ours(_NAMES[kind], wrong)


def _write(folder: Path, model: Model, described: Mapping[str, Any]) -> None:
    text = json.dumps(described, indent=2, allow_nan=False)
    refuse_other_make(model, _twin(folder, json.loads(text)), what(model))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in _named(model).items()}
    atomic_write_bytes(folder / "model.safetensors", save(tensors))
    atomic_write_text(folder / "config.json", text + "\n")


def _twin(folder: Path, described: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):  # takes no memory and draws nothing
        return _built(folder, described)


def load(path: str | Path) -> Model:
    """Load what a folder holds: tokenizer, pre-trained model, classifier, segmenter or encoder.

    In evaluation mode, on the CPU.

    Raises:
        UserError: There is no such folder, or its files are not a model of ours.
    """
    folder = Path(path)
    config = read_config(folder)
    if config.get("kind") == "tokenizer":
        return storage.load(folder)
    model = _built(folder, config)
    load_weights(model, folder / "model.safetensors")
    if isinstance(model, Classifier) and isinstance(view := config.get("view"), dict):
        model.view = view
    return model.eval()


def _built(
    folder: Path, config: Mapping[str, Any]
) -> MaskedImageModel | Classifier | Segmenter | Encoder:
    """What a description says, with weights that mean nothing."""
    kind = config.get("kind")
    if kind == ENCODER_KIND:
        return Encoder(_encoder_config(folder, config))
    if kind == CLASSIFIER_KIND:
        return _classifier(folder, config)
    if kind == SEGMENTER_KIND:
        return _segmenter(folder, config)
    if kind != KIND:
        raise UserError(f"{folder / 'config.json'} says kind {kind!r}, which is no model of beit's")
    return _masked_image_model(folder, config)


def load_masked_image_model(path: str | Path) -> MaskedImageModel:
    """Load a pre-trained model and refuse anything else."""
    model = load(path)
    if not isinstance(model, MaskedImageModel):
        raise UserError(f"{path} holds {what(model)}; a pre-trained model is wanted")
    return model


def what(model: Model) -> str:
    """What a model is, in words."""
    return _NAMES[type(model)]


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check a model folder's config.json."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"{folder} holds no finished model (no config.json); give the folder of a finished run"
        )
    return read_json_object(file)


def encoder_config_from(values: Mapping[str, Any]) -> EncoderConfig:
    """Read an encoder's configuration as `asdict` wrote it."""
    read: dict[str, Any] = {
        name: tuple(value) if name in _TUPLES else value for name, value in values.items()
    }
    return EncoderConfig(**read)


def _encoder_config(folder: Path, config: Mapping[str, Any]) -> EncoderConfig:
    try:
        return encoder_config_from(config["encoder"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not describe an encoder: {error}"
        ) from error


def _masked_image_model(folder: Path, config: Mapping[str, Any]) -> MaskedImageModel:
    encoder = _encoder_config(folder, config)
    try:
        target, outputs = config["head"]["target"], int(config["head"]["outputs"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not describe an encoder and its head: {error}"
        ) from error
    if target not in ("tokens", "pixels"):
        raise UserError(f"{folder / 'config.json'} has a head for {target!r}, not tokens or pixels")
    if outputs < 1:
        raise UserError(f"{folder / 'config.json'} has a head with {outputs} outputs")
    kind = MaskedTokenHead if target == "tokens" else MaskedPixelHead
    return MaskedImageModel(Encoder(encoder), kind(encoder.width, outputs))


def _classifier(folder: Path, config: Mapping[str, Any]) -> Classifier:
    encoder = _encoder_config(folder, config)
    try:
        classes, pool = int(config["head"]["classes"]), config["head"]["pool"]
        labels = tuple(str(label) for label in config["labels"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} does not describe a classifier: {error}") from (
            error
        )
    if pool not in ("mean", "special") or classes < 1 or len(labels) not in (0, classes):
        raise UserError(
            f"{folder / 'config.json'} describes an impossible classifier: {classes} classes, "
            f"{len(labels)} labels, pool {pool!r}"
        )
    return Classifier(Encoder(encoder), ClassifierHead(encoder.width, classes, pool), labels)


def _segmenter(folder: Path, config: Mapping[str, Any]) -> Segmenter:
    encoder = _encoder_config(folder, config)
    _require_known_decoder(folder, config.get("decoder"))
    try:
        decoder = decoder_config_from(config["decoder"])
        labels = tuple(str(label) for label in config["labels"])
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not describe a segmenter: {error}"
        ) from error
    if len(labels) not in (0, decoder.classes):
        raise UserError(
            f"{folder / 'config.json'} names {len(labels)} of {decoder.classes} classes"
        )
    return build_segmenter(Encoder(encoder), decoder, labels)


def _require_known_decoder(folder: Path, described: object) -> None:
    kind = described.get("kind") if isinstance(described, Mapping) else None
    if isinstance(kind, str) and not known(kind):
        raise UserError(
            f"{folder} holds a segmenter with the decoder {kind!r}, which is none of beit's own: "
            "load it from Python, once that decoder is registered by beit.nn.own_decoder.register"
        )


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill a model from a safetensors file; names and shapes must be the same."""
    try:
        with for_safetensors(file) as path:
            tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error})") from error
    wanted = _named(model)
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or extra:
        name = (missing or extra)[0]
        raise UserError(f"{file} does not fit: {'no' if missing else 'unexpected'} weight {name!r}")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
            raise UserError(f"{file} does not fit: {name!r} has shape {shapes}")
    model.load_state_dict(tensors, strict=True)


def _named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())
