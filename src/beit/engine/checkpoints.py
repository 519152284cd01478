"""Checkpoints that appear whole or not at all, are hashed, and hold no pickle.

    checkpoints/step-00001234/
        model.safetensors  average.safetensors (with EMA)  optimiser.safetensors
        state.json         step, samples seen, fingerprints, versions
        manifest.json      size and SHA-256 of each of the others, written last

A checkpoint is written into `step-00001234.tmp-<unique>/`, every file is brought to the disk, the
manifest last, and one rename makes it appear. Only then are older ones removed.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from beit.errors import UserError
from beit.files import (
    for_safetensors,
    fsync_file,
    fsync_folder,
    human_bytes,
    json_of_measured,
    sha256_of,
    write_synced,
)

MANIFEST = "manifest.json"
STATE = "state.json"
_FORMAT = "beit checkpoint 1"
_COMPLETE = re.compile(r"step-\d{8,}")
_UNFINISHED = re.compile(r"step-\d{8,}\.tmp-[0-9a-f]{12}")
_UNFINISHED_TENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # as safetensors calls what it writes
_OURS = frozenset(
    {MANIFEST, STATE, "model.safetensors", "average.safetensors", "optimiser.safetensors"}
)
_SLACK = 1 << 20  # bytes for headers, JSON and the folder itself


@dataclass(frozen=True)
class Snapshot:
    """A run at one step: named groups of tensors ("model", ...) and a JSON-able state."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]

    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for group in self.tensors.values() for t in group.values())


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was found whole, and the newer ones that were not."""

    path: Path
    snapshot: Snapshot
    refused: tuple[tuple[str, str], ...] = ()  # (name, why)


class BadCheckpoint(Exception):
    """A checkpoint is not what its manifest says."""


@dataclass
class Checkpoints:
    """The checkpoints of one run. Touches nothing in the folder that it did not make."""

    folder: Path
    keep: int = 2
    _refused: set[str] = field(default_factory=set)

    def prepare(self) -> None:
        """Make the folder and clear what killed saves left behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.iterdir()):
            if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                clear_snapshot(path)

    def require_space(self, snapshot_size: int, beside: int = 0) -> None:
        """Refuse to start a run whose checkpoints the disk cannot hold.

        Args:
            snapshot_size: Bytes of the tensors of one.
            beside: Bytes of the models that the run writes beside them.

        Raises:
            UserError: There is less room than the run will need at its fullest.
        """
        missing = self.keep + 1 - len(self.steps())
        _require(self.folder, max(1, missing) * (snapshot_size + _SLACK) + beside)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, oldest first, verified or not."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if _is_ours(path)]
        return sorted(int(name.removeprefix("step-")) for name in names)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, then remove the oldest.

        Raises:
            UserError: The disk is full or refuses; the previous checkpoints are intact.
        """
        final = self.path(snapshot.step)
        if _is_ours(final) and final.name not in self._refused and _is_verified(final):
            return final
        _require(self.folder, snapshot.size() + _SLACK)
        temporary = final.with_name(f"{final.name}.tmp-{secrets.token_hex(6)}")
        try:
            write_snapshot(temporary, snapshot)
            self._set_aside(final)
            os.rename(temporary, final)
            fsync_folder(self.folder)
            self._refused.discard(final.name)
            self._retire()
        except (OSError, SafetensorError) as error:
            with suppress(OSError):  # a disk that takes nothing may refuse to remove as well
                _remove_ours(temporary, _OURS)
            raise UserError(
                f"the checkpoint of step {snapshot.step} could not be written to {self.folder} "
                f"({error}); the checkpoints before it are intact: make room there "
                f"({human_bytes(snapshot.size())} a checkpoint) and go on with --resume"
            ) from error
        return final

    def load(self) -> Loaded | None:
        """Read the newest checkpoint whose manifest verifies.

        Returns:
            None when there is no checkpoint at all.

        Raises:
            UserError: There are some and not one verifies.
            PermissionError: One may not be read.
        """
        refused: list[tuple[str, str]] = []
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                snapshot = read_snapshot(path)
            except PermissionError:  # nothing says that it is bad
                raise
            except (BadCheckpoint, OSError) as error:
                refused.append((path.name, str(error)))
                self._refused.add(path.name)
                continue
            return Loaded(path, snapshot, tuple(refused))
        if not refused:
            return None
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
        raise UserError(
            f"no checkpoint in {self.folder} can be trusted ({reasons}): "
            "move that folder away to begin the run again"
        )

    def _set_aside(self, final: Path) -> None:
        """Clear the name of a checkpoint that does not verify; its remains are ours to remove."""
        if not _is_ours(final):
            return
        grave = final.with_name(f"{final.name}.tmp-{secrets.token_hex(6)}")
        os.rename(final, grave)
        _remove_ours(grave, _OURS)

    def _retire(self) -> None:
        """Remove the oldest beyond `keep`, and those that are known to be bad."""
        paths = [self.path(step) for step in self.steps()]
        good = [p for p in paths if p.name not in self._refused and _sizes_agree(p)]
        for path in paths:
            if path not in good[-self.keep :]:
                _remove_ours(path, _OURS)
                self._refused.discard(path.name)


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Write a snapshot into a new folder: files, each fsynced, and the manifest last."""
    folder.mkdir()
    state = {"step": snapshot.step, **snapshot.state}
    write_synced(folder / STATE, json_of_measured(state, indent=1, sort_keys=True).encode())
    for name, tensors in snapshot.tensors.items():
        path = folder / f"{name}.safetensors"
        assert path.name in _OURS, f"{name} is not a part of a checkpoint"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        with suppress(OSError):  # to safetensors it is the owner's alone; some disks keep no modes
            shutil.copymode(folder / STATE, path)
        fsync_file(path)
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    write_synced(folder / MANIFEST, _manifest_bytes(files))
    fsync_folder(folder)


def clear_snapshot(folder: Path) -> None:
    """Remove a snapshot, or what a kill left of one, from a folder of ours."""
    if folder.is_dir():
        _remove_ours(folder, _OURS | _unfinished_tensors(folder))


def read_snapshot(folder: Path) -> Snapshot:
    """Read a checkpoint after checking every byte of it against its manifest.

    Raises:
        BadCheckpoint: Something is missing, of another size, or of another hash.
    """
    files = _verify(folder)
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    names = [name for name in files if name.endswith(".safetensors")]
    tensors = {name.removesuffix(".safetensors"): _tensors_of(folder / name) for name in names}
    return Snapshot(state.pop("step"), tensors, state)


def _tensors_of(path: Path) -> dict[str, Tensor]:
    with for_safetensors(path) as name:
        return dict(load_file(name))


def _manifest_bytes(files: Mapping[str, Any]) -> bytes:
    """One canonical form, so that any changed byte shows; it carries its own checksum."""
    body = {"files": files, "format": _FORMAT}
    checksum = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "checksum": checksum}, indent=1, sort_keys=True).encode()


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        data = (folder / MANIFEST).read_bytes()
        files: dict[str, Any] = json.loads(data)["files"]
        intact = isinstance(files, dict) and _manifest_bytes(files) == data
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadCheckpoint("its manifest cannot be read") from error
    except FileNotFoundError as error:
        raise BadCheckpoint("its manifest is missing") from error
    if not intact:
        raise BadCheckpoint("its manifest is damaged")
    if not set(files) < _OURS or STATE not in files:
        raise BadCheckpoint("its manifest lists other files than a checkpoint has")
    return files


def _check_sizes(folder: Path) -> dict[str, Any]:
    files = _read_manifest(folder)
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise BadCheckpoint(f"{name} is missing")
        if path.stat().st_size != entry["size"]:
            raise BadCheckpoint(
                f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
            )
    return files


def _verify(folder: Path) -> dict[str, Any]:
    files = _check_sizes(folder)
    for name, entry in files.items():
        if sha256_of(folder / name) != entry["sha256"]:
            raise BadCheckpoint(f"{name} is damaged (its SHA-256 is another)")
    return files


def _sizes_agree(folder: Path) -> bool:
    try:
        _check_sizes(folder)
    except (BadCheckpoint, OSError):
        return False
    return True


def _is_verified(folder: Path) -> bool:
    try:
        _verify(folder)
    except (BadCheckpoint, OSError):
        return False
    return True


def _is_ours(path: Path) -> bool:
    """Whether a checkpoint of ours lies here: by its name and its manifest, sound or not."""
    named = _COMPLETE.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    return bool(named) and (path / MANIFEST).is_file()


def _remove_ours(folder: Path, names: frozenset[str]) -> None:
    """Remove our files from a folder of ours, the manifest last, and the folder if that empties it.

    Until the last file is gone the remains are recognised as ours, so a kill here leaves no litter.
    """
    for name in sorted(names - {MANIFEST}) + [MANIFEST]:
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:  # somebody put a file of their own there, or it was never made
        return


def _unfinished_tensors(folder: Path) -> frozenset[str]:
    """Names of the files that safetensors was writing into a folder of ours when it was killed."""
    return frozenset(
        path.name
        for path in folder.iterdir()
        if _UNFINISHED_TENSORS.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    )


def _require(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free} bytes free and the run needs {needed} "
            f"({human_bytes(needed)}): make room there or choose another --out"
        )
