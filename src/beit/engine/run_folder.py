"""The folder of one run: where its things lie, and the lock that keeps it to one process."""

import errno
import os
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from beit.engine.launcher import restarted
from beit.errors import UserError

_LOCK = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)  # what a lock of another process's is refused with
_held: set[Path] = set()  # record locks do not exclude their own process; this does
_without_locks: set[int] = set()  # numbers of the file systems that were told to have none


class RunFolder:
    """The paths of a run. Use as a context manager, or call `close` to give up the lock."""

    def __init__(self, path: Path, lock: IO[str] | None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path | str, *, resume: bool = False, main: bool = True) -> "RunFolder":
        """Make the folder of a new run, or enter that of an old one to go on with it.

        Args:
            path: Where; made when missing.
            resume: Go on with the run that is there (or begin, when there is none yet).
            main: Whether this is rank 0; the other ranks neither check nor lock.

        Raises:
            UserError: The folder holds something and `resume` was not asked for, or another process
                is training in it.
        """
        # One name for one folder, however it is reached: what is held is known by its name.
        folder = Path(os.path.realpath(path))
        if not main:
            return cls(folder, None)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{path} is a file: choose a folder for --out")
        if not (resume or restarted()) and _holds_something(folder):
            raise UserError(
                f"{path} is not empty: add --resume to go on with the run in it, "
                "or choose another --out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(folder)
        except OSError as error:  # no right, a file on the way, a disk that is full or read-only
            raise UserError(
                f"{path} cannot be written to ({error.strerror}); choose another --out"
            ) from error
        return cls(folder, lock)

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line; each step once."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What was told on the terminal."""
        return self.path / "log.txt"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    @property
    def config(self) -> Path:
        """What the final weights are."""
        return self.path / "config.json"

    @property
    def report(self) -> Path:
        """The run's report."""
        return self.path / "report.html"

    def failure(self, step: int) -> Path:
        """Where the dump of a step that failed goes."""
        return self.path / f"failure-step-{step:08d}"

    def close(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            _held.discard(self.path)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(path.name != _LOCK for path in folder.iterdir())


def _take_lock(folder: Path) -> IO[str]:
    """Lock for the life of the process.

    A record lock, because it goes with the process however that dies and, unlike flock, is not
    inherited by the loader's workers, which may outlive a killed parent by seconds. Some network
    file systems have none; there, only runs of this process are kept apart.
    """
    if folder in _held:
        raise UserError(f"this process is already training in {folder}")
    file = (folder / _LOCK).open("a+", encoding="utf-8")
    try:
        _lock_file(file)
    except OSError as error:
        if error.errno in _HELD:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{holder} is training in {folder}: wait for it or stop it, or choose another --out"
            ) from error
        _tell_of_no_locks(folder, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held.add(folder)
    return file


def _tell_of_no_locks(folder: Path, error: OSError) -> None:
    """Tell once for each file system that nothing keeps other processes out."""
    device = folder.stat().st_dev
    if device not in _without_locks:
        _without_locks.add(device)
        text = f"{folder} is on a file system without locks ({error.strerror}): see to it yourself "
        text += "that no other command writes there meanwhile"
        print(f"beit: {text}", file=sys.stderr, flush=True)


def _lock_file(file: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        # Far past the text, so that others can still read who holds it.
        file.seek(1 << 20)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        file.seek(0)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
