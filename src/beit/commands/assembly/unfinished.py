"""Folders that take hours to fill: one appears under its name when it is whole."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beit.engine.run_folder import RunFolder
from beit.errors import UserError
from beit.files import fsync_folder, human_bytes, human_time

_EVERY = 10.0  # seconds between two lines of progress


@contextmanager
def unfinished(out: Path, size: int = 0, *, main: bool = True) -> Iterator[Path]:
    """A folder beside `out` to be filled; it becomes `out` at the end.

    After any kind of stop it stays as it is, to be gone on with. One process at a time may fill it
    (its other ranks pass `main=False` and wait outside).

    Args:
        out: What the folder will be called.
        size: Bytes that are still to be written, as far as they are known.
        main: Whether this process locks, checks and renames.

    Raises:
        UserError: `out` holds something or cannot be replaced, somebody else is filling the folder,
            or the disk has no room.
    """
    out, folder = _followed(out), partial(out)
    if not main:
        yield folder
        return
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already; choose another --out")
    if os.path.ismount(out):  # nothing can take its place, which would show at the end only
        raise UserError(f"{out} is where a disk is mounted; choose a folder in it for --out")
    with RunFolder.open(folder, resume=True):
        free = os.statvfs(folder)
        if size > free.f_bavail * free.f_frsize:
            room = human_bytes(free.f_bavail * free.f_frsize)
            raise UserError(
                f"{human_bytes(size)} are to be written to {out.parent}, which has room for {room}"
            )
        try:
            yield folder
        except OSError as error:
            raise UserError(
                f"{folder} cannot be filled ({error.strerror or error}); the same command goes on "
                "where it stopped"
            ) from error
    (folder / ".lock").unlink(missing_ok=True)
    fsync_folder(folder)
    os.rename(folder, out)
    fsync_folder(out.parent)


def partial(out: Path) -> Path:
    """Where what will be `out` is filled."""
    out = _followed(out)
    if not out.name:
        raise UserError(f"{out} is there already; choose another --out")
    return out.with_name(f"{out.name}.partial")


def _followed(out: Path) -> Path:
    """Where a link leads: a folder can take the place of an empty folder, not that of a link."""
    return Path(os.path.realpath(out))


class Progress:
    """A line on standard error now and then: how much is done, how fast, how long still."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        """Begin.

        Args:
            what: Is counted, in the plural.
            total: How many there are to be.
            done: How many there were before.
        """
        self._what, self._total = what, total
        self._before = self._done = done
        self._began = self._told = time.monotonic()

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = time.monotonic()
        if now - self._told >= _EVERY or self._done >= self._total:
            self._told = now
            print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        rate = (self._done - self._before) / max(now - self._began, 1e-6)
        left = (self._total - self._done) / max(rate, 1e-6)
        share = f"{self._done / max(1, self._total):.0%}"
        text = f"{self._done:,} of {self._total:,} {self._what} ({share}), {rate:,.0f} a second"
        return text if self._done >= self._total else f"{text}, {human_time(left)} left"
