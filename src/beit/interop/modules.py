"""Whole pickled torch modules: the tensors in them by name, and nothing else of them.

Both of torch's containers are read: zip archives (since 1.6), and before that five pickles in a row
followed by the storages.
"""

import math
import struct
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor

from beit.errors import UserError
from beit.interop.pickles import Name, Persistent, Record, Refused, read_pickle
from beit.interop.sniff import FileKind, open_archive, sniff

LARGEST_PICKLE = 16 << 20  # DALL-E's are some ten thousand bytes
_DEEPEST, _MOST = 16, 4096  # modules inside modules, and all of them
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's older format

STORAGES: dict[str, torch.dtype] = {"FloatStorage": torch.float32, "HalfStorage": torch.float16}
REBUILD_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = Name("torch._utils", "_rebuild_parameter")
ORDERED_DICT = Name("collections", "OrderedDict")
PLAIN_NAMES = frozenset(
    {
        *(Name("torch", storage) for storage in STORAGES),
        *(REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT),
        *(Name("torch", "device"), Name("builtins", "set"), Name("__builtin__", "set")),
    }
)


@dataclass
class PickledModule:
    """A module's class, its tensors by their dotted names, and its plain numbers likewise."""

    name: Name
    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    modules: int = 0


def read_module(path: Path, classes: Collection[Name]) -> PickledModule:
    """Read a pickled module without executing anything.

    Args:
        path: A module as torch saves it whole.
        classes: The module classes that may occur in it.

    Raises:
        UserError: It is something else, is damaged, or names what is not on the list.
    """
    try:
        kind = sniff(path)
        names = PLAIN_NAMES | set(classes)
        root, storages = _from_zip(path, names) if kind == "zip" else _from_pickles(path, names)
        if not isinstance(root, Record) or root.maker not in classes:
            raise Refused("it does not hold a module")
        module = PickledModule(root.maker)
        _walk(root, "", module, storages, 0)
    except Refused as refusal:
        raise UserError(f"{path} is refused: {refusal}; nothing in it was executed") from refusal
    return module


def require_plain_pickle(path: Path, kind: FileKind) -> None:
    """Walk through a checkpoint's pickle as data, before torch reads it.

    torch's own reader executes nothing either, but it can be kept busy for ever.

    Raises:
        UserError: The pickle is damaged, or does what no saved weights do.
    """
    try:
        _root(path, kind)
    except Refused as refusal:
        raise UserError(f"{path} is refused: {refusal}; nothing in it was executed") from refusal


def pickled_class(path: Path) -> Name | None:
    """Whose object a file of torch's holds, from its pickle alone; None for plain values.

    Raises:
        UserError: It is no such file, or is damaged.
    """
    try:
        root = _root(path, sniff(path), LARGEST_PICKLE)
    except Refused as refusal:
        raise UserError(f"{path} is refused: {refusal}; nothing in it was executed") from refusal
    return root.maker if isinstance(root, Record) else None


def _root(path: Path, kind: FileKind, most: int = -1) -> Any:
    """What a file's pickle says; of an older file no more than its first bytes can be read."""
    if kind == "zip":
        with open_archive(path) as archive:
            return read_pickle(BytesIO(_pickle_in(archive)[1]), None)
    with path.open("rb") as file:
        _header(stream := BytesIO(file.read(most)))
    return read_pickle(stream, None)


def _pickle_in(archive: ZipFile) -> tuple[str, bytes]:
    """The name of an archive's one folder, and the pickle in it."""
    members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise Refused("the archive is not one of torch's")
    if members[pickles[0]].file_size > LARGEST_PICKLE:
        raise Refused("its pickle is far too large")
    return pickles[0].partition("/")[0], _member(archive, pickles[0])


def _member(archive: ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except Exception as error:  # a damaged archive may fail anywhere
        raise Refused(f"the archive is damaged ({error})") from error


def _from_zip(path: Path, names: Collection[Name]) -> tuple[Any, dict[str, bytes]]:
    with open_archive(path) as archive:
        top, data = _pickle_in(archive)
        root, stem, order = read_pickle(BytesIO(data), names), f"{top}/data/", f"{top}/byteorder"
        members = archive.namelist()
        if order in members:
            _require_byte_order(_member(archive, order) == b"little")
        storages = {
            name.removeprefix(stem): _member(archive, name)
            for name in members
            if name.startswith(stem)
        }
    return root, storages


def _require_byte_order(little: Any) -> None:
    if bool(little) != (sys.byteorder == "little"):
        raise Refused("it was written on a machine with another byte order")


def _from_pickles(path: Path, names: Collection[Name]) -> tuple[Any, dict[str, bytes]]:
    data = path.read_bytes()
    stream = BytesIO(data)
    _header(stream)
    root = read_pickle(stream, names)
    keys = read_pickle(stream, ())
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refused("its list of storages is damaged")
    sizes: dict[str, int] = {}
    _item_sizes(root, sizes)
    storages = {}
    for key in keys:
        count = stream.read(8)
        if len(count) < 8 or key not in sizes:
            raise Refused("it is cut off")
        length = struct.unpack("<q", count)[0] * sizes[key]
        if not 0 <= length <= len(data) - stream.tell():
            raise Refused("it is cut off")
        storages[key] = stream.read(length)
    return root, storages


def _header(stream: BytesIO) -> None:
    """Read the three pickles that stand before the one that counts."""
    if read_pickle(stream, ()) != _MAGIC or read_pickle(stream, ()) != _PROTOCOL:
        raise Refused("it is a pickle, but not one of torch's")
    system = read_pickle(stream, ())
    _require_byte_order(isinstance(system, dict) and system.get("little_endian"))


def _item_sizes(root: Any, sizes: dict[str, int]) -> None:
    """Bytes a number of every storage that is referred to, without recursion."""
    waiting, seen = [root], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Persistent):
            key, dtype, _ = _storage(value)
            sizes[key] = dtype.itemsize
        elif isinstance(value, Record):
            waiting += [value.state, value.arguments, value.items]
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value


def _storage(reference: Any) -> tuple[str, torch.dtype, int]:
    """Key, type and length of a storage, as a persistent reference has them."""
    key = reference.key if isinstance(reference, Persistent) else ()
    if len(key) not in (5, 6) or key[0] != "storage" or not isinstance(key[1], Name):
        raise Refused("a tensor has no storage")
    if key[1].name not in STORAGES or not isinstance(key[2], str) or not isinstance(key[4], int):
        raise Refused("a tensor has an unknown storage")
    return key[2], STORAGES[key[1].name], key[4]


def _walk(
    record: Record, prefix: str, into: PickledModule, storages: dict[str, bytes], depth: int
) -> None:
    """Collect the tensors and numbers of a module and of those inside it."""
    into.modules += 1  # a module may stand in several places, and so in more than can be counted
    if depth > _DEEPEST or into.modules > _MOST or not isinstance(record.state, dict):
        raise Refused("its modules are damaged")
    for name, value in record.state.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            into.numbers[f"{prefix}{name}"] = value
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(record.state.get(kind)).items():
            if value is not None:
                into.tensors[f"{prefix}{name}"] = _tensor(value, storages)
                storages_used = sum(tensor.numel() for tensor in into.tensors.values())
                if storages_used > sum(map(len, storages.values())):
                    raise Refused("it claims more numbers than it holds")
    for name, inner in _items(record.state.get("_modules")).items():
        if not isinstance(inner, Record):
            raise Refused("its modules are damaged")
        _walk(inner, f"{prefix}{name}.", into, storages, depth + 1)


def _items(value: Any) -> dict[Any, Any]:
    if isinstance(value, Record) and value.maker == ORDERED_DICT:
        value = value.items
    if not isinstance(value, dict):
        raise Refused("its modules are damaged")
    return value


def _tensor(value: Any, storages: dict[str, bytes]) -> Tensor:
    """The numbers of a recorded tensor or parameter; float32."""
    if isinstance(value, Record) and value.maker == REBUILD_PARAMETER and value.arguments:
        value = value.arguments[0]
    if not isinstance(value, Record) or value.maker != REBUILD_TENSOR or len(value.arguments) < 4:
        raise Refused("something stands where a tensor should")
    reference, offset, size, stride = value.arguments[:4]
    key, dtype, length = _storage(reference)
    shape = _shape(size)
    count = math.prod(shape)
    data = storages.get(key)
    if data is None or len(data) != length * dtype.itemsize:
        raise Refused("a storage is missing or cut off")
    contiguous = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
    if not isinstance(offset, int) or not 0 <= offset <= length - count or stride != contiguous:
        raise Refused("a tensor reaches beyond its storage")
    if not count:
        return torch.zeros(shape)
    whole = torch.frombuffer(bytearray(data), dtype=dtype)
    return whole[offset : offset + count].reshape(shape).float().clone()


def _shape(size: Any) -> tuple[int, ...]:
    if not isinstance(size, tuple) or len(size) > 4:
        raise Refused("a tensor has an impossible shape")
    if not all(isinstance(length, int) and 0 <= length < 1 << 31 for length in size):
        raise Refused("a tensor has an impossible shape")
    return size
