"""What files say beside their weights: classes' names, sizes, and how pictures are prepared."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from beit.errors import UserError
from beit.files import read_json_object
from beit.interop.infer import Hints
from beit.interop.normalisation import Normalisation, normalisation_from
from beit.interop.weight_files import SAFE, read_metadata
from beit.nn.config import LARGEST_SIDE

PROCESSOR = "preprocessor_config.json"
OWN = "beit"  # where a file for others says what others have no words for
SEGMENTING = ("view", "palette", "reduce_zero_label")  # of a segmenter, as in our config.json
_NUMBER = (int, float)
_VIEW: dict[str, tuple[type, ...]] = {
    "short_side": (int,),
    "mode": (str,),
    "stride_share": _NUMBER,
    "scales": (list,),
    "flip": (bool,),
}


class Prepared(NamedTuple):
    """How pictures were prepared for a model, as far as its files say.

    `centre_share` is the share of the sides that a crop from the middle keeps; `segmenting` what a
    file of ours says of a segmenter: how it sees whole pictures, its colours, how masks count.
    """

    fed: Normalisation | None = None
    centre_share: float | None = None
    segmenting: Mapping[str, Any] = MappingProxyType({})


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
    told = segmenting_told(said.get(OWN), str(file))
    return Prepared(fed, share if 0 < share <= 1 else 1.0, told)


def segmenting_told(said: object, where: str) -> dict[str, Any]:
    """How a segmenter sees pictures, from a config.json of ours or from `OWN` in others' files.

    Raises:
        UserError: It has impossible values.
    """
    found = {n: v for n, v in said.items() if n in SEGMENTING} if isinstance(said, Mapping) else {}
    palette = found.get("palette")
    coloured = palette is None or isinstance(palette, list) and all(map(_colour, palette))
    reduced = isinstance(found.get("reduce_zero_label", False), bool)
    if not (coloured and reduced and _sees(found.get("view", {}))):
        raise UserError(f"{where} says impossible things of a segmenter's pictures: {found}")
    return found


def _sees(view: Any) -> bool:
    """Whether something says how whole pictures are seen, in values of the right kinds."""
    if not isinstance(view, Mapping) or not view.keys() <= _VIEW.keys():
        return False
    typed = all(type(value) in _VIEW[name] for name, value in view.items())
    numbers = typed and all(type(scale) in _NUMBER for scale in view.get("scales", ()))
    return numbers and 1 < view.get("short_side", LARGEST_SIDE) <= LARGEST_SIDE


def _colour(value: Any) -> bool:
    """Whether something is three numbers of a byte each."""
    three = isinstance(value, list) and len(value) == 3
    return three and all(type(part) is int and 0 <= part < 256 for part in value)


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
    segmenting = segmenting_told(read.get(OWN), str(file))
    return Told(hints, names, Prepared(fed, share if possible else None, segmenting))


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
