"""What files say beside their weights: classes' names, sizes, and how pictures are prepared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from beit.errors import UserError
from beit.interop.infer import Hints
from beit.interop.normalisation import Normalisation, normalisation_from
from beit.interop.weight_files import SAFE, read_json, read_metadata

PROCESSOR = "preprocessor_config.json"


class Prepared(NamedTuple):
    """How pictures were prepared for a model, as far as its files say.

    `centre_share` is the share of the sides that a crop from the middle keeps.
    """

    fed: Normalisation | None = None
    centre_share: float | None = None


def read_prepared(folder: Path) -> Prepared:
    """Read the image processor of a transformers folder.

    Raises:
        UserError: It has impossible values.
    """
    file = folder / PROCESSOR
    if not file.is_file():
        return Prepared()
    said = read_json(file)
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


def labels_told(read: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes' names that a checkpoint of ours for the reference has beside its weights."""
    found = read.get("labels")
    return tuple(map(str, found)) if isinstance(found, (list, tuple)) else ()


def timm_told(file: Path, hints: Hints) -> tuple[Hints, tuple[str, ...]]:
    """What a file of ours for timm says in its header: sizes, heads, and the classes' names.

    Raises:
        UserError: It has a header like ours with impossible values.
    """
    if file.suffix != SAFE:
        return hints, ()
    header = read_metadata(file)
    if "timm" not in header:
        return hints, ()
    try:
        arguments, labels = json.loads(header["timm"]), json.loads(header.get("labels", "[]"))
        height, width = (int(side) for side in arguments["img_size"])
        heads = int(arguments["num_heads"])
        names = tuple(str(label) for label in labels)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file} has an impossible header ({error})") from error
    return Hints(hints.image_size or (height, width), hints.heads or heads), names
