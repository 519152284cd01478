"""Files that were made to do harm, if somebody unpickled them or believed their sizes.

The payload makes the file `sentinel`; every name stands for a file that must be refused.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class _Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.called


def _touch(sentinel: Path) -> _Calls:
    return _Calls(os.system, f"touch {sentinel}")


def _program(sentinel: Path) -> str:
    return f"open({str(sentinel)!r}, 'w').close()"


def _text(*lines: str) -> bytes:
    """A pickle of protocol 0 behind the header of protocol 2."""
    return b"\x80\x02" + "\n".join(lines).encode()


def _short(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _calls(module: str, name: str, argument: str) -> bytes:
    return b"\x80\x02" + _global(module, name) + _short(argument) + b"\x85R."


def _archive(
    data: bytes, members: dict[str, bytes] | None = None, name: str = "archive/data.pkl"
) -> bytes:
    """torch's zip container round a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(name, data)
        archive.writestr("archive/version", "3\n")
        for member, content in (members or {}).items():
            archive.writestr(f"archive/data/{member}", content)
    return buffer.getvalue()


def _deflated(data: bytes, members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name}", content)
    return buffer.getvalue()


def _saved(value: Any, *, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def _storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    """A persistent reference to a storage."""
    reference = _short("storage") + _global("torch", kind) + _short(key) + _short("cpu")
    return b"(" + reference + b"\x8a\x08" + struct.pack("<q", count) + b"tQ"


def _tensor(key: str, count: int, shape: int, stride: int = 1) -> bytes:
    """A call of torch's rebuilding function with sizes of our choice."""
    numbers = b"".join(
        b"\x8a\x08" + struct.pack("<q", number) + b"\x85" for number in (shape, stride)
    )
    empty = _global("collections", "OrderedDict") + b")R"
    return (
        _global("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + _storage(key, count)
        + b"K\x00"
        + numbers
        + b"\x89"
        + empty
        + b"tR"
    )


def _model(tensor: bytes) -> bytes:
    return b"\x80\x02}" + _short("cls_token") + tensor + b"s."


def _truncated(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def _module_with(state: bytes) -> bytes:
    """A pickled dall_e encoder whose state is a pickle of our choice."""
    return b"\x80\x02" + _global("dall_e.encoder", "Encoder") + b")\x81" + state + b"b."


def _cycle() -> bytes:
    """A module that holds itself."""
    return (
        b"\x80\x02"
        + _global("dall_e.encoder", "Encoder")
        + b")\x81q\x00}("
        + _short("_parameters")
        + b"}"
        + _short("_buffers")
        + b"}"
        + _short("_modules")
        + b"}"
        + _short("blocks")
        + b"h\x00sub."
    )


def _many_places() -> bytes:
    """Modules inside modules, each standing in many places: more than can be walked through."""
    head = _global("torch.nn.modules.container", "Sequential")
    plain = b"}(" + _short("_parameters") + b"}" + _short("_buffers") + b"}" + _short("_modules")
    program = b"\x80\x02" + head + b")\x81" + plain + b"}ubq\x00"
    for level in range(1, 12):
        places = b"".join(_short(f"n{place}") + b"h" + bytes([level - 1]) for place in range(50))
        program += head + b")\x81" + plain + b"}(" + places + b"uub" + b"q" + bytes([level])
    root = _global("dall_e.encoder", "Encoder") + b")\x81" + plain
    return program + root + b"}" + _short("blocks") + b"h\x0b" + b"sub."


def _deep_tuple() -> bytes:
    """A key whose hash takes two to the hundredth steps."""
    return b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 100 + b"K\x00s."


def _old_header() -> bytes:
    """The three pickles that torch's older files begin with."""
    parts: tuple[Any, ...] = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in parts)


def _hostile(sentinel: Path) -> dict[str, Callable[[], bytes]]:
    call, program = _touch(sentinel), _program(sentinel)
    good = OrderedDict(cls_token=torch.zeros(1, 1, 8))
    system = f"touch {sentinel}"
    return {
        # calls, by every instruction that makes one
        "reduce": lambda: pickle.dumps(call, 2),
        "reduce, protocol 4": lambda: pickle.dumps(call, 4),
        "reduce, protocol 5": lambda: pickle.dumps(call, 5),
        "reduce in a dictionary": lambda: pickle.dumps({"cls_token": call}, 2),
        "reduce saved by torch": lambda: _saved({"cls_token": call}),
        "reduce saved by torch of old": lambda: _saved({"cls_token": call}, archive=False),
        "reduce beside weights": lambda: _saved({"model": good, "epoch": call}),
        "exec": lambda: _calls("builtins", "exec", program),
        "exec, Python 2": lambda: _calls("__builtin__", "exec", program),
        "eval in an archive": lambda: _archive(_calls("builtins", "eval", program)),
        "posix system": lambda: _archive(_calls("posix", "system", system)),
        "nt system": lambda: _archive(_calls("nt", "system", system)),
        "subprocess": lambda: _archive(_calls("subprocess", "getoutput", system)),
        "runpy": lambda: _archive(_calls("runpy", "run_path", str(sentinel))),
        "importlib": lambda: _archive(_calls("importlib", "import_module", "antigravity")),
        "webbrowser": lambda: _archive(_calls("webbrowser", "open", "http://127.0.0.1/")),
        "torch.load inside": lambda: _archive(_calls("torch", "load", str(sentinel))),
        "torch.hub": lambda: _archive(_calls("torch.hub", "load", "a/b")),
        "getattr": lambda: _archive(_calls("builtins", "getattr", "system")),
        "open": lambda: _archive(_calls("io", "open", str(sentinel))),
        "inst": lambda: _text(f"(S'touch {sentinel}'", "ios", "system", "."),
        "obj": lambda: b"\x80\x02(" + _global("os", "system") + _short(system) + b"o.",
        "newobj": lambda: (
            b"\x80\x02" + _global("subprocess", "Popen") + _short(system) + b"\x85\x81."
        ),
        "newobj_ex": lambda: (
            b"\x80\x04" + _global("subprocess", "Popen") + _short(system) + b"\x85}\x92."
        ),
        "stack_global": lambda: (
            b"\x80\x04" + _short("os") + _short("system") + b"\x93" + _short(system) + b"\x85R."
        ),
        "a dotted name": lambda: _archive(_calls("torch", "serialization.os.system", system)),
        "extension registry": lambda: b"\x80\x02\x82\x01.",
        "buffer": lambda: b"\x80\x05\x97.",
        # states
        "build": lambda: (
            b"\x80\x02"
            + _global("argparse", "Namespace")
            + b")\x81}"
            + _short("__class__")
            + _global("os", "system")
            + b"sb."
        ),
        "build on a class": lambda: (
            b"\x80\x02" + _global("collections", "OrderedDict") + b"}" + _short("a") + b"K\x01sb."
        ),
        "setstate in a module": lambda: _archive(_module_with(pickle.dumps(call, 2)[2:-1])),
        "a module of nothing": lambda: _archive(_module_with(b"N")),
        "a module that holds itself": lambda: _archive(_cycle()),
        "modules in many places": lambda: _archive(_many_places()),
        "a key that takes forever": lambda: _archive(_deep_tuple()),
        "the same in a bare pickle": _deep_tuple,
        "the same behind torch's old header": lambda: _old_header() + _deep_tuple(),
        # archives
        "an archive in an archive": lambda: _archive(
            b"\x80\x02N.", {"inner": _archive(pickle.dumps(call, 2))}
        ),
        "two pickles": lambda: _archive(pickle.dumps(call, 2)) + _archive(b"\x80\x02}."),
        "a pickle behind an archive": lambda: _saved({"model": good})[:-4] + pickle.dumps(call, 2),
        "an archive behind a pickle": lambda: pickle.dumps(call, 2) + _saved(good),
        "a pickle outside": lambda: _archive(pickle.dumps(call, 2), name="../../data.pkl"),
        "TorchScript": lambda: _archive(b"\x80\x02}.", {"../constants.pkl": b"\x80\x02}."}),
        "a tar": lambda: b"\x80\x02}." + b"\0" * 254 + b"ustar" + b"\0" * 600,
        # sizes
        "a compressed bomb": lambda: _deflated(
            _model(_tensor("0", 1 << 25, 1 << 25)), {"0": b"\0" * (1 << 27)}
        ),
        "a storage that is not there": lambda: _archive(_model(_tensor("0", 1 << 40, 1 << 40))),
        "a tensor beyond its storage": lambda: _archive(
            _model(_tensor("0", 1, 1 << 33)), {"0": b"\0" * 4}
        ),
        "a tensor of one number": lambda: _archive(
            _model(_tensor("0", 1, 1 << 33, 0)), {"0": b"\0" * 4}
        ),
        "a negative size": lambda: _archive(_model(_tensor("0", 1, -5)), {"0": b"\0" * 4}),
        "a far memo": lambda: b"\x80\x02}r\xff\xff\xff\x7f.",
        "a long text": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
        "a long number": lambda: b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"a.",
        "a deep list": lambda: b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        # damage
        "half an archive": lambda: _truncated(_saved(good), 0.5),
        "an archive without its end": lambda: _truncated(_saved(good), 0.97),
        "half a pickle": lambda: _truncated(_saved(good, archive=False), 0.5),
        "no end": lambda: b"\x80\x02}",
        "a stack that is empty": lambda: b"\x80\x020R.",
        "wrong magic": lambda: b"PK\x05\x06" + _saved(good)[4:],
        "noise": lambda: bytes(range(128, 256)) * 8,
        "nothing": lambda: b"",
        "a text": lambda: b"It is 404 o'clock.\n",
        "a web page": lambda: b"<!DOCTYPE html><html><body>Sign in</body></html>",
        "a Git LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "wget's log": lambda: b"--2021-06-20 10:00:00--  https://example.org/encoder.pkl\n",
        "a list": lambda: _saved([1, 2, 3]),
        "a number": lambda: _saved(7),
    }


NAMES = list(_hostile(Path("sentinel")))


def hostile(name: str, sentinel: Path) -> bytes:
    """The bytes of one of them."""
    return _hostile(sentinel)[name]()
