"""Files of tensors: safetensors, and torch's `.pth`, read without executing anything.

This is the one place that calls `torch.load`, and it does so with `weights_only=True`. What a file
claims is compared with its size before anything is made of it. Nothing here writes to the disk.
"""

import argparse
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from beit.errors import UserError
from beit.files import for_safetensors
from beit.interop.modules import require_plain_pickle
from beit.interop.sniff import sniff

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a transformers folder, best first
SAFE = ".safetensors"
GRAPHS = (".onnx", ".pt2")
_DEPTH = 4  # a checkpoint's dictionaries: model, its parts, and a little more


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a file of tensors, or of dictionaries of them and of plain values.

    Raises:
        UserError: It is not such a file, is damaged, or wants something executed.
    """
    if path.suffix in GRAPHS:
        raise UserError(
            f"{path} is a graph, and graphs are written and never read; give the model it is from"
        )
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a .pth, .pt or .safetensors file")
    if path.suffix == SAFE:
        try:
            with for_safetensors(path) as name:
                return dict(load_file(name))
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read as safetensors ({error})") from error
    require_plain_pickle(path, sniff(path))
    read = _load(path)
    if not isinstance(read, Mapping):
        raise UserError(f"{path} holds a {type(read).__name__}, not a dictionary of tensors")
    _require_honest(path, read)
    return {str(name): value for name, value in read.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header.

    Raises:
        UserError: It is no such file.
    """
    try:
        with for_safetensors(path) as name, safe_open(name, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error})") from error


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A Namespace only holds values; the reference saves its arguments in one.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file may fail in any way; whichever it is, it failed
        reason = _first_line(error)
        raise UserError(
            f"{path} is refused: it does not hold tensors alone or is damaged ({reason})"
        ) from error


def _first_line(error: Exception) -> str:
    """What torch says, without its advice to switch the safety off."""
    text = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sentence = lines[0].partition(". ")[0] if lines else type(error).__name__
    return sentence[:160].rstrip(".")


def _require_honest(path: Path, read: Mapping[Any, Any]) -> None:
    """Refuse tensors that are larger than the file they come from (strides of 0, swollen ones)."""
    size = path.stat().st_size
    total = 0
    for tensor in _tensors(read, 0):
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(f"{path} is refused: it holds tensors that are not plain numbers")
        total += tensor.numel() * tensor.element_size()
        if total > 2 * size:  # weights that two names share are counted twice
            raise UserError(f"{path} is refused: it claims more numbers than the file holds")


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping) and depth < _DEPTH:
        for inner in value.values():
            yield from _tensors(inner, depth + 1)


def torch_bytes(value: Mapping[str, Any]) -> bytes:
    """A dictionary of tensors as the reference reads it: torch's own format, and only for that."""
    buffer = io.BytesIO()
    torch.save(dict(value), buffer)
    return buffer.getvalue()
