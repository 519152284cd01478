"""A tokenizer on disk: `model.safetensors` and `config.json` in a folder. Nothing is executed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from beit.errors import UserError
from beit.files import atomic_write_bytes, atomic_write_text, for_safetensors
from beit.nn.same_make import not_ours, refuse_other_make
from beit.tokenizer.config import DiscreteVAEConfig
from beit.tokenizer.dvae import DiscreteVAE
from beit.weights import add_weights

KIND = "tokenizer"
FAMILY = "dvae"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def fingerprint(model: DiscreteVAE) -> str:
    """A sha256 over configuration and weights: equal fingerprints give equal codes."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    add_weights(digest, model.state_dict())
    return digest.hexdigest()


def save(model: DiscreteVAE, folder: Path) -> None:
    """Write the tokenizer, weights first: a folder that has its config.json has it whole.

    Raises:
        UserError: It is not made as ours are, and would not be what is loaded again.
    """
    if type(model) is not DiscreteVAE:
        raise not_ours("a tokenizer", f"it is a {type(model).__qualname__}")
    with torch.device("meta"):
        same = DiscreteVAE(model.config)
    refuse_other_make(model, same, "a tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    atomic_write_bytes(folder / WEIGHTS_FILE, serialise(weights))
    description = {
        "kind": KIND,
        "family": FAMILY,
        "vocabulary": model.vocabulary,
        "image_size": list(model.image_size),
        "grid": list(model.grid),
        "fingerprint": fingerprint(model),
        "config": model.config.to_dict(),
    }
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    atomic_write_text(folder / CONFIG_FILE, text)


def load(folder: Path) -> DiscreteVAE:
    """Read a tokenizer that `save` wrote; in evaluation mode, on the CPU.

    Raises:
        UserError: The folder holds no tokenizer of ours, or a damaged one.
    """
    description = _read_description(folder)
    config = description.get("config")
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG_FILE} has no 'config': save the tokenizer again.")
    model = _build(config, folder)
    _read_weights(model, folder / WEIGHTS_FILE)
    if description.get("fingerprint") != fingerprint(model):
        raise UserError(
            f"the tokenizer in {folder} does not match its own fingerprint: {WEIGHTS_FILE} or "
            f"{CONFIG_FILE} was changed or damaged; copy both again."
        )
    return model.eval()


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{folder} is not a tokenizer folder: {CONFIG_FILE} cannot be read; give the folder "
            "that `beit tokenizer` wrote."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON: give a folder that `beit tokenizer` wrote."
        ) from error
    if not isinstance(description, dict) or description.get("kind") != KIND:
        raise UserError(f"{path} does not describe a tokenizer: give a folder that has one.")
    if description.get("family") != FAMILY:
        raise UserError(
            f"{path} describes a tokenizer of family {description.get('family')!r}, which this "
            f"version does not know: use one of family {FAMILY!r}."
        )
    return description


def _build(values: dict[str, Any], folder: Path) -> DiscreteVAE:
    """Build the model that a configuration from outside asks for."""
    try:
        return DiscreteVAE(DiscreteVAEConfig.from_dict(values))
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE} holds values no tokenizer can have ({error}): "
            "save the tokenizer again."
        ) from error


def _read_weights(model: DiscreteVAE, path: Path) -> None:
    try:
        with for_safetensors(path) as name:
            weights = load_file(name)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({error}): copy the folder again."
        ) from error
    wanted = model.state_dict()
    differing = sorted(
        name
        for name in wanted.keys() | weights.keys()
        if name not in wanted or name not in weights or wanted[name].shape != weights[name].shape
    )
    if differing:
        raise UserError(
            f"{path} does not fit its {CONFIG_FILE} ({differing[0]} is missing, unknown or of "
            "another shape): the two files are not from one tokenizer."
        )
    model.load_state_dict(weights)
