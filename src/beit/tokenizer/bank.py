"""Visual tokens computed once and kept: a file that is mapped into memory, and what it is of.

A bank is a folder with `codes.npy`, the codes of K views of N pictures, `manifest.json`, and a copy
of the tokenizer. It is filled part by part beside the place where it will stand (a log names the
parts that reached the disk) and gets its name when it is whole. Any number of runs, ranks and
loader workers read one copy of it through the page cache.
Legend: K views, N pictures, (h, w) grid of codes, B pictures of a batch.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.errors import UserError
from beit.files import atomic_write_text

FORMAT = 1  # rises when views are cut, or codes kept, in another way
MOST_CODES = 1 << 16  # a code takes two bytes
TOKENIZER = "tokenizer"  # folder of the tokenizer's copy
MANIFEST, _CODES = "manifest.json", "codes.npy"
_LOGS = "parts-*.log"
_AT_ONCE = 4096  # pictures whose codes are hashed at once
_OTHER = {
    "tokenizer": "another tokenizer",
    "precision": "a tokenizer that computes otherwise",
    "data": "other pictures",
    "pictures": "other pictures",
    "seed": "another seed",
    "views": "other views",
    "grid": "another grid of codes",
    "vocabulary": "another vocabulary",
}


@dataclass(frozen=True)
class BankOrigin:
    """What codes depend on; other values mean other codes."""

    tokenizer: str  # its fingerprint
    precision: str  # that it computes in
    data: str  # fingerprint of the pictures
    pictures: int
    seed: int
    views: Mapping[str, Any]  # how a view is made, as JSON knows values
    grid: tuple[int, int]
    vocabulary: int


@dataclass(frozen=True)
class BankManifest:
    """What a bank is of, how much there is of it, and where it was made."""

    origin: BankOrigin
    views: int  # K, of each picture
    again: bool  # whether they are meant to be used again in turn
    made: Mapping[str, Any]  # versions and device; decides nothing
    digests: tuple[str, ...] = ()  # SHA-256 of each view's codes; none in an unfinished or old bank

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(K, N, h, w)."""
        return self.views, self.origin.pictures, *self.origin.grid

    @property
    def size(self) -> int:
        """Bytes of the codes."""
        return codes_size(self.views, self.origin.pictures, self.origin.grid)

    def as_json(self) -> str:
        """The manifest as text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    def difference(self, wanted: BankOrigin) -> str | None:
        """Why codes of `wanted` cannot be had here, in one phrase; None when they can."""
        ours, theirs = (json.loads(json.dumps(asdict(o))) for o in (self.origin, wanted))
        for name, other in _OTHER.items():
            if ours[name] == theirs[name]:
                continue
            if name != "views":
                return f"{other} ({_short(ours[name])} there, {_short(theirs[name])} here)"
            for field in sorted(ours[name] | theirs[name]):
                there, here = ours[name].get(field), theirs[name].get(field)
                if there != here:
                    return f"{other} ({field} {there} there, {here} here)"
        return None


def codes_size(views: int, pictures: int, grid: tuple[int, int]) -> int:
    """Bytes that the codes of a bank take."""
    return 2 * views * pictures * math.prod(grid)


def _digest(codes: NDArray[np.uint16]) -> str:
    """The SHA-256 of a view's codes (N, h, w) as they lie in the file, in hex."""
    digest = sha256()
    for start in range(0, len(codes), _AT_ONCE):
        digest.update(codes[start : start + _AT_ONCE].tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)


class TokenBank:
    """A finished bank, read by the loader.

    Pickling passes the path alone: each worker maps the file for itself.
    """

    def __init__(self, folder: Path) -> None:
        """Open a bank.

        Raises:
            UserError: The folder holds no whole bank.
        """
        self.folder = folder.absolute()
        self.manifest = read_manifest(folder)
        try:
            codes = self._codes
        except (OSError, ValueError) as error:
            raise UserError(
                f"the bank {folder} is damaged ({error}); make it again, or copy it again"
            ) from error
        if codes.shape != self.manifest.shape or codes.dtype != np.uint16:
            raise UserError(
                f"the bank {folder} is damaged: {_CODES} holds {codes.dtype} {codes.shape}, and "
                f"its manifest says {self.manifest.shape}; copy both again"
            )

    def verify(self, views: int | None = None) -> None:
        """See that the codes of the first `views` views (None: of all) are those that were written.

        Reads them once. A bank from before digests passes: it has nothing to be held to.

        Raises:
            UserError: A byte of them is another.
        """
        for view, digest in enumerate(self.manifest.digests[:views]):
            if _digest(self._codes[view]) != digest:
                raise UserError(
                    f"the bank {self.folder} is damaged: the codes of view {view} in {_CODES} are "
                    "not those that were written; copy it again, or remove it and make it again"
                )

    def read(self, views: Sequence[int], indices: Sequence[int], /) -> Tensor:
        """The codes of these views of these pictures, (B, h, w) int64."""
        return torch.from_numpy(self._codes[list(views), list(indices)].astype(np.int64))

    @cached_property
    def _codes(self) -> NDArray[np.uint16]:
        codes: NDArray[np.uint16] = np.load(self.folder / _CODES, mmap_mode="r", allow_pickle=False)
        return codes

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_codes"}


def read_manifest(folder: Path) -> BankManifest:
    """Read what a bank, or an unfinished one, is of.

    Raises:
        UserError: The folder holds none.
    """
    file = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"there is no bank {folder}; make one with `beit bank`")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if tree.pop("format") != FORMAT:
            raise UserError(f"the bank {folder} was made by another version; make it again")
        origin = tree.pop("origin")
        origin["grid"] = tuple(origin["grid"])
        digests = tuple(str(digest) for digest in tree.pop("digests", ()))
        return BankManifest(BankOrigin(**origin), **tree, digests=digests)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is not a bank: {MANIFEST} cannot be read; give the folder that `beit bank` "
            "made"
        ) from error


class BankWriter:
    """An unfinished bank, filled by one process or by several.

    Positions count through the whole bank: p is view p // N of picture p % N. A part is logged
    after its codes have reached the disk, so what is logged is there after any kind of stop.
    """

    def __init__(self, folder: Path, manifest: BankManifest, part: int, writer: int = 0) -> None:
        """Open for writing.

        Args:
            folder: Where `begin` was called.
            manifest: What is made.
            part: Positions in a part.
            writer: Number of this process.
        """
        self._manifest = manifest
        self._part = part
        self._row = math.prod(manifest.origin.grid)
        self._file = os.open(folder / _CODES, os.O_RDWR)
        self._start = os.fstat(self._file).st_size - manifest.size
        log = folder / f"parts-{writer}.log"
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(self._log, b"\n")  # a stop may have cut the last line

    @staticmethod
    def begin(folder: Path, manifest: BankManifest) -> None:
        """Write the manifest and make room for the codes, unless that was done before."""
        if (folder / MANIFEST).is_file():
            return
        with (folder / _CODES).open("wb") as file:
            header = {"descr": "<u2", "fortran_order": False, "shape": manifest.shape}
            write: Any = np.lib.format.write_array_header_1_0
            write(file, header)
            file.truncate(file.tell() + manifest.size)
            file.flush()
            os.fsync(file.fileno())
        atomic_write_text(folder / MANIFEST, manifest.as_json())

    @staticmethod
    def finish(folder: Path) -> None:
        """Write down the digests, and remove what only an unfinished bank needs."""
        codes = np.load(folder / _CODES, mmap_mode="r", allow_pickle=False)
        digests = tuple(_digest(view) for view in codes)
        manifest = replace(read_manifest(folder), digests=digests)
        atomic_write_text(folder / MANIFEST, manifest.as_json())
        for log in folder.glob(_LOGS):
            log.unlink()

    def write(self, start: int, codes: Tensor) -> None:
        """Put (B, h, w) codes at positions `start` and after."""
        data = codes.cpu().numpy().astype("<u2").tobytes()
        place = self._start + 2 * self._row * start
        while data:  # a write may be cut short
            done = os.pwrite(self._file, data, place)
            data, place = data[done:], place + done

    def log(self, number: int) -> None:
        """Note that a part is whole."""
        os.fsync(self._file)
        os.write(self._log, f"{self._part} {number} whole\n".encode())
        os.fsync(self._log)

    def close(self) -> None:
        """Close both files."""
        os.close(self._file)
        os.close(self._log)


def finished_parts(folder: Path, part: int) -> set[int]:
    """The numbers of the parts that are whole, whoever wrote them."""
    found = set()
    for log in folder.glob(_LOGS):
        for line in log.read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split(" ")
            if len(words) == 3 and words[0] == str(part) and words[2] == "whole":
                found.add(int(words[1]))
    return found
