"""A folder as timm's pages on the hub have it: weights, and a config.json that describes them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from beit.errors import UserError
from beit.files import read_json_object
from beit.interop.models import ForeignModel
from beit.interop.normalisation import normalisation_from
from beit.interop.plain_vit import reason_in_parts
from beit.interop.told import Prepared, centre_share
from beit.interop.weight_files import WEIGHTS
from beit.nn.heads import ClassifierHead

CONFIG = "config.json"
SIZES = {"img_size", "patch_size", "in_chans", "embed_dim", "depth", "mlp_ratio", "drop_path_rate"}
KNOWN = {*SIZES, "num_heads", "num_classes", "global_pool", "init_values", "drop_rate"}


@dataclass(frozen=True)
class Described:
    """What a config.json of timm's says that shapes do not."""

    heads: int
    image_size: tuple[int, int] | None
    prepared: Prepared
    labels: tuple[str, ...]


def described_by_timm(path: Path) -> Described | None:
    """Read the config.json of a folder, or beside a file; None where it is not timm's.

    Raises:
        UserError: It describes what is no encoder of ours, or has impossible values.
    """
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not file.is_file():
        return None
    config = read_json_object(file)
    if "architecture" not in config or "model_type" in config or "kind" in config:
        return None
    try:
        return _described(config, file)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} has impossible values ({error})") from error


def _described(config: Mapping[str, Any], file: Path) -> Described:
    arguments, pretrained = dict(config.get("model_args") or {}), config.get("pretrained_cfg") or {}
    unknown = sorted(set(arguments) - KNOWN)
    if unknown:
        raise UserError(f"{file} asks for {unknown[0]!r}, which may be no encoder of beit's")
    heads = int(arguments.get("num_heads") or _heads(str(config["architecture"]), file))
    size = arguments.get("img_size") or pretrained.get("input_size")
    sides = (size, size) if isinstance(size, int) else tuple(int(side) for side in size or ())[-2:]
    labels = config.get("label_names") or ()
    if not isinstance(labels, (list, tuple)):
        labels = ()
    mean = pretrained.get("mean")
    return Described(
        heads,
        (sides[0], sides[1]) if sides else None,
        Prepared(
            None if mean is None else normalisation_from(mean, pretrained.get("std"), str(file)),
            centre_share(pretrained),
        ),
        tuple(map(str, labels)),
    )


def _heads(architecture: str, file: Path) -> int:
    """Attention heads of one of timm's architectures, which must be one of ours too."""
    import timm

    if not timm.is_model(architecture):
        raise UserError(f"{file} describes a {architecture[:60]!r}, which timm does not know")
    with torch.device("meta"):
        model: Any = timm.create_model(architecture, pretrained=False)
    reason = reason_in_parts(model)
    if reason is not None:
        raise UserError(f"{file} describes no encoder of beit's: {reason}")
    return int(model.blocks[0].attn.num_heads)


def weights_in(path: Path) -> Path:
    """The file of weights in a folder of timm's, or the file itself."""
    if not path.is_dir():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} holds neither {' nor '.join(WEIGHTS)}")


def as_described(model: ForeignModel, described: Described) -> ForeignModel:
    """Add what the folder says to a model that was read from it."""
    head = model.head
    fits = isinstance(head, ClassifierHead) and head.output.out_features == len(described.labels)
    labels = described.labels if fits else model.labels
    return replace(model, prepared=described.prepared, labels=labels)
