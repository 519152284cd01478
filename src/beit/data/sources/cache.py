"""Where indices are kept, and how one appears whole or not at all.

`<cache>/<key>/current.json` names the generation in force, a folder of .npy files beside it. A new
generation is written under a temporary name, brought to the disk, renamed, and only then named in
`current.json`, so any number of processes may look or build at once, and what is named is whole
after a power cut too. The user's own folder is never written to.
"""

import filecmp
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.errors import UserError
from beit.files import atomic_write_text, fsync_file, fsync_folder, naming, write_synced

_POINTER = "current.json"
_KEPT_GENERATIONS = 3  # a run that started on an older one may still open its files
_ABANDONED = 86_400.0  # seconds after which what is unfinished was left there by a kill
_SMALL = 1 << 16  # bytes; smaller arrays are read, larger ones mapped


def cache_folder() -> Path:
    """`BEIT_CACHE`, or `beit` in `XDG_CACHE_HOME`, or `~/.cache/beit`."""
    if chosen := os.environ.get("BEIT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beit"


def cache_key(kind: str, path: bytes) -> str:
    """A file name for what is known about a path."""
    return f"{kind}-{hashlib.blake2b(path, digest_size=12).hexdigest()}"


def current_generation(key: str, *arrays: str) -> Path | None:
    """The folder of the generation in force, None when there is none that can be read.

    Args:
        key: What it is of.
        arrays: Those that must be there and as long as they say.
    """
    home = cache_folder() / "indices" / key
    try:
        name = json.loads((home / _POINTER).read_text())["generation"]
        folder = home / Path(name).name
        for array in arrays:
            open_array(folder, array)
        return folder if (folder / "meta.json").is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def publish_generation(key: str, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new folder and put it in force.

    When it holds the same arrays as the one in force, that one stays: a run may be using it.

    Raises:
        UserError: The cache cannot be written.
    """
    home = cache_folder() / "indices" / key
    name = f"{time.time_ns():020d}-{os.getpid()}"
    unfinished = home / f".{name}"
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        known = current_generation(key)
        if known is not None and _same_arrays(known, unfinished):
            (unfinished / "meta.json").replace(known / "meta.json")
            shutil.rmtree(unfinished, ignore_errors=True)
            return known
        fsync_folder(unfinished)
        unfinished.rename(home / name)
        atomic_write_text(home / _POINTER, json.dumps({"generation": name}))
        _remove_old(home)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(
            f"cannot write the index of the data to {home} ({error.strerror or error}); "
            "set BEIT_CACHE to a folder with room that can be written"
        ) from None
    return home / name


def _same_arrays(one: Path, other: Path) -> bool:
    names = [{path.name for path in folder.glob("*.npy")} for folder in (one, other)]
    return names[0] == names[1] and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names[0]
    )


def _remove_old(home: Path) -> None:
    # Names begin with the time; files that another process has mapped live until it lets go.
    finished = sorted(path for path in home.iterdir() if path.is_dir() and path.name[0] != ".")
    for path in finished[:-_KEPT_GENERATIONS]:
        shutil.rmtree(path, ignore_errors=True)
    for path in home.iterdir():
        if path.name.startswith((".", f"{_POINTER}.")):
            _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):  # its process has just finished it, or another one removed it
        if time.time() - path.stat().st_mtime < _ABANDONED:
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def save_array(folder: Path, name: str, values: NDArray[Any]) -> None:
    """Write one array of a generation, and bring it to the disk."""
    path = folder / f"{name}.npy"
    with naming(path):
        np.save(path, values, allow_pickle=False)
        fsync_file(path)


def open_array(folder: Path, name: str) -> NDArray[Any]:
    """Open one array of a generation, shared through the page cache when it is large.

    Raises:
        OSError: It is not there.
        ValueError: It is damaged.
    """
    path = folder / f"{name}.npy"
    small = path.stat().st_size < _SMALL
    try:
        return np.asarray(np.load(path, mmap_mode=None if small else "r", allow_pickle=False))
    except EOFError as error:
        raise ValueError(f"{path} is empty") from error


def save_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write the small facts of a generation, and bring them to the disk."""
    write_synced(folder / "meta.json", json.dumps(meta).encode())


def load_meta(folder: Path) -> dict[str, Any]:
    """Read the small facts of a generation."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    return meta
