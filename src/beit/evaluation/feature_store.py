"""Features of every block, computed once and kept on disk in half precision.

A kept set is a folder with two arrays and a manifest that says what they were made from. The
manifest is written last and names the arrays, and everything appears whole or not at all, so a
kill at any moment leaves the old set or the new one.
Legend: L blocks, N pictures, D width, B pictures of a batch.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.errors import UserError
from beit.files import atomic_write_text, fsync_file, fsync_folder, human_bytes
from beit.nn.encoder import Encoder
from beit.weights import add_weights

FORMAT = 1  # rises when features are pooled in another way
_MANIFEST = "manifest.json"
_OTHER = {"model": "another model", "data": "other pictures", "view": "another view of them"}
_IRRELEVANT = ("drop_path", "dropout", "checkpointing")  # of a configuration, in evaluation

Half = NDArray[np.float16]
Integers = NDArray[np.int64]
Parts = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Origin:
    """What features were made from; other values mean other features."""

    model: str  # `weights_hash` of the encoder
    data: str  # fingerprint of the pictures and their labels
    view: str  # what was made of each picture, in words


@dataclass(frozen=True)
class KeptFeatures:
    """Pictures as vectors after every block."""

    features: Half  # (L, N, D), mapped from the disk
    labels: Integers  # (N,)
    note: str = ""  # why they were computed, or that they were there


def weights_hash(encoder: Encoder) -> str:
    """A SHA-256 over everything that decides what an encoder computes."""
    config = {k: v for k, v in asdict(encoder.config).items() if k not in _IRRELEVANT}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    add_weights(digest, encoder.state_dict())
    return digest.hexdigest()


def kept_features(
    folder: Path, origin: Origin, shape: tuple[int, int, int], compute: Callable[[], Parts]
) -> KeptFeatures:
    """Read a kept set, or compute and keep it when it is not there or of another origin.

    Args:
        folder: Of this set alone; made when missing.
        origin: What the features are made from.
        shape: (L, N, D); N is what there is to be, and fewer pictures may come (unreadable ones).
        compute: Gives (L, B, D) features and (B,) labels batch by batch; called if needed.

    Raises:
        UserError: No picture came, a feature is not finite, or the disk is full.
    """
    kept, reason = _read(folder, origin)
    if kept is not None:
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_all_but(folder, _named_in(folder))
        _compute(folder, origin, shape, compute())
    except OSError as error:
        size = human_bytes(2 * int(np.prod(shape)))
        raise UserError(
            f"the features ({size}) cannot be kept in {folder} ({error.strerror}); "
            "name a folder on a disk with room for them"
        ) from error
    kept, problem = _read(folder, origin)
    assert kept is not None, problem
    return KeptFeatures(kept.features, kept.labels, reason)


def _read(folder: Path, origin: Origin) -> tuple[KeptFeatures | None, str]:
    """The kept set, or the reason why there is none that fits."""
    file = folder / _MANIFEST
    if not file.is_file():
        return None, "computed, none were kept"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None, "computed anew, those kept were pooled by another version"
        for name, wanted in asdict(origin).items():
            if manifest["origin"][name] != wanted:
                return None, f"computed anew, those kept are of {_OTHER[name]}"
        features, labels = (
            np.load(folder / manifest[what], mmap_mode="r") for what in ("features", "labels")
        )
        _check(features, labels, manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"computed anew, those kept cannot be read ({error})"
    return KeptFeatures(features, np.array(labels), "kept from before"), ""


def _check(features: Half, labels: Integers, manifest: dict[str, Any]) -> None:
    shape = tuple(manifest["shape"])
    if features.shape != shape or labels.shape != shape[1:2] or features.dtype != np.float16:
        raise ValueError(f"{features.shape} numbers and {labels.shape} labels for {shape}")


def _compute(folder: Path, origin: Origin, shape: tuple[int, int, int], parts: Parts) -> None:
    """Write both arrays, then the manifest, then remove what it does not name."""
    mark = secrets.token_hex(6)
    features, labels = folder / f"features-{mark}.npy", folder / f"labels-{mark}.npy"
    count, known = _write_features(features, shape, parts)
    if not count:
        raise UserError("There is no picture to compute features of: none could be read.")
    with labels.open("wb") as file:
        np.save(file, known)
    fsync_file(labels)
    fsync_folder(folder)
    manifest = {
        "format": FORMAT,
        "origin": asdict(origin),
        "shape": [shape[0], count, shape[2]],
        "features": features.name,
        "labels": labels.name,
    }
    atomic_write_text(folder / _MANIFEST, json.dumps(manifest, indent=2) + "\n")
    _remove_all_but(folder, {features.name, labels.name})


def _write_features(path: Path, shape: tuple[int, int, int], parts: Parts) -> tuple[int, Integers]:
    """Write a block after the other although they come a batch after the other.

    Plain writes and no mapped memory: a full disk is then an error and not a crash.
    """
    layers, expected, width = shape
    labels: list[Integers] = [np.zeros(0, np.int64)]
    count = 0
    with path.open("wb") as file:
        begin = _write_header(file, shape)
        for features, known in parts:
            batch = _as_half(features)
            assert batch.shape == (layers, len(known), width), (batch.shape, shape)
            for layer in range(layers):
                file.seek(begin + 2 * width * (layer * expected + count))
                file.write(batch[layer].tobytes())
            count += len(known)
            labels.append(known.numpy().astype(np.int64))
        file.truncate(begin + 2 * width * layers * expected)
    if 0 < count < expected:
        _close_gaps(path, shape, count)
    fsync_file(path)
    return count, np.concatenate(labels)


def _as_half(features: Tensor) -> Half:
    finite = torch.isfinite(features).flatten(1).all(1)
    if not bool(finite.all()):
        block = int((~finite).nonzero()[0]) + 1
        raise UserError(
            f"the features after block {block} are not all finite numbers; "
            "the weights of this checkpoint are broken"
        )
    half: Half = features.half().numpy()
    return half


def _write_header(file: Any, shape: tuple[int, int, int]) -> int:
    write: Any = np.lib.format.write_array_header_1_0
    write(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return int(file.tell())


def _close_gaps(path: Path, shape: tuple[int, int, int], count: int) -> None:
    """Write the file again with as many pictures as there are."""
    sparse = np.load(path, mmap_mode="r")
    whole = path.with_name(f"whole-{path.name}")
    with whole.open("wb") as file:
        _write_header(file, (shape[0], count, shape[2]))
        for layer in sparse:
            file.write(layer[:count].tobytes())
    os.replace(whole, path)


def _named_in(folder: Path) -> set[str]:
    """The arrays that the manifest names, if there is one that can be read."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return {str(manifest["features"]), str(manifest["labels"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _remove_all_but(folder: Path, names: set[str]) -> None:
    """Remove other arrays, such as those a killed process began; nothing else in the folder."""
    for pattern in ("*features-*.npy", "labels-*.npy", f"{_MANIFEST}.tmp-*"):
        for path in folder.glob(pattern):
            if path.name not in names:
                path.unlink(missing_ok=True)
