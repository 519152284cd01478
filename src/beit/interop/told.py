"""What files say beside their weights: classes' names, sizes, and how pictures are prepared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from beit.errors import UserError
from beit.files import read_json_object
from beit.interop.infer import Hints
from beit.interop.normalisation import Normalisation, normalisation_from
from beit.interop.weight_files import SAFE, read_metadata

PROCESSOR = "preprocessor_config.json"


class Prepared(NamedTuple):
    """How pictures were prepared for a model, as far as its files say.

    `centre_share` is the share of the sides that a crop from the middle keeps.
    """

    fed: Normalisation | None = None
    centre_share: float | None = None


class Told(NamedTuple):
    """What a file says beside its weights: sizes and heads, the classes' names, the crop."""

    hints: Hints
    labels: tuple[str, ...] = ()
    prepared: Prepared = Prepared()


def read_prepared(folder: Path) -> Prepared:
    """Read the image processor of a transformers folder.

    Raises:
        UserError: It has impossible values.
    """
    file = folder / PROCESSOR
    if not file.is_file():
        return Prepared()
    said = read_json_object(file)
    fed = None
    if said.get("do_normalize", True) and "image_mean" in said:
        fed = normalisation_from(said["image_mean"], said.get("image_std"), str(file))
    try:
        share = 1.0
        if said.get("do_center_crop", False) and said.get("do_resize", True):
            share = _side(said["crop_size"]) / _side(said["size"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{file} has impossible sizes ({error})") from error
    return Prepared(fed, share if 0 < share <= 1 else 1.0)


def _side(size: Any) -> int:
    if isinstance(size, Mapping):
        return int(size["shortest_edge"] if "shortest_edge" in size else size["height"])
    return int(size)


def centre_share(pretrained: Mapping[str, Any]) -> float | None:
    """The share of the sides that timm's crop keeps; None where it is not said."""
    share = float(pretrained.get("crop_pct") or 0)
    return share if 0 < share <= 1 else None


def file_told(file: Path, read: Mapping[str, Any], hints: Hints) -> Told:
    """What a file of ours for timm or for the reference says beside its weights.

    Raises:
        UserError: It says what we say, with impossible values.
    """
    header = read_metadata(file) if file.suffix == SAFE else {}
    if "timm" in header:
        return _timm_told(file, header, hints)
    return _reference_told(file, read, hints)


def _reference_told(file: Path, read: Mapping[str, Any], hints: Hints) -> Told:
    labels, share = read.get("labels"), read.get("centre_share")
    names = tuple(map(str, labels)) if isinstance(labels, (list, tuple)) else ()
    possible = isinstance(share, float) and 0 < share <= 1
    mean, deviation = read.get("mean"), read.get("deviation")
    fed = None
    if isinstance(mean, list) and isinstance(deviation, list):
        fed = normalisation_from(mean, deviation, str(file))
    return Told(hints, names, Prepared(fed, share if possible else None))


def _timm_told(file: Path, header: Mapping[str, str], hints: Hints) -> Told:
    try:
        arguments, labels = json.loads(header["timm"]), json.loads(header.get("labels", "[]"))
        height, width = (int(side) for side in arguments["img_size"])
        heads = int(arguments["num_heads"])
        names = tuple(str(label) for label in labels)
        said = arguments.get("pretrained_cfg_overlay", {})
        mean, share = said.get("mean"), centre_share(said)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file} has an impossible header ({error})") from error
    fed = None if mean is None else normalisation_from(mean, said.get("std"), str(file))
    hints = Hints(hints.image_size or (height, width), hints.heads or heads)
    return Told(hints, names, Prepared(fed, share))
