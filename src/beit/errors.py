"""The two ways a run ends early: the user's mistake, and a stop that was asked for."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN = "and repeat the command, a run with --resume"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_RIGHT = frozenset({errno.EACCES, errno.EPERM})
_NO_HANDLES = frozenset({errno.EMFILE, errno.ENFILE})
_FAILING = "see that its disk, or the network to it, works"
# What else the system says of a file that was named: what it means, and the way out.
_IN_THE_WAY = {
    errno.EROFS: ("cannot be written", f"choose another place, or make that one writable {_AGAIN}"),
    errno.ENAMETOOLONG: ("cannot be had", "choose a shorter name"),
    errno.ENOTDIR: ("cannot be had", "something on the way there is a file; name another place"),
    errno.EISDIR: ("is a folder where a file is wanted", f"remove it {_AGAIN}, or name another"),
    errno.EEXIST: ("is in the way", f"move it away {_AGAIN}, or name another place"),
    errno.ELOOP: ("cannot be had", "its links lead round in a circle; name what is meant"),
    errno.ENOENT: ("is not there, or no longer", f"put it back {_AGAIN}"),
    errno.EIO: ("cannot be read or written", f"{_FAILING}, {_AGAIN}"),
    errno.ESTALE: ("is no longer what was opened", f"{_FAILING}, {_AGAIN}"),
    errno.ETIMEDOUT: ("does not answer", f"{_FAILING}, {_AGAIN}"),
    errno.EBUSY: ("is in use", f"see what else uses it {_AGAIN}"),
}


class UserError(ValueError):
    """Bad input. The message is one sentence that names the culprit and the way out.

    The command line prints it and exits with status 2; nothing has been lost.
    """


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C arrived; the state is saved and the message tells how to go on.

    As any other Ctrl-C it is no Exception: a sweep that leaves out runs that fail ends by it.
    """


def disk_complaint(error: BaseException) -> str | None:
    """What to tell when a disk or the system refuses a file; None for other errors."""
    if not isinstance(error, OSError):
        return None
    named = error.filename2 or error.filename
    culprit = os.fsdecode(named) if isinstance(named, (str, bytes, os.PathLike)) else ""
    if error.errno in _NO_ROOM:
        where = culprit or "the disk"
        return f"{where} cannot be written ({error.strerror}): make room there {_AGAIN}"
    if error.errno in _NO_HANDLES:
        return (
            f"{culprit or 'a file'} cannot be opened ({error.strerror}): permit more (`ulimit -n`) "
            f"or take fewer workers (--data.workers) {_AGAIN}"
        )
    if not culprit:  # not of a file: a socket, a process
        return None
    if error.errno in _NO_RIGHT:
        return (
            f"{culprit} cannot be {_forbidden(culprit)} ({error.strerror}): have that permitted, "
            f"or name another place, {_AGAIN}"
        )
    if error.errno not in _IN_THE_WAY:
        return None
    trouble, way_out = _IN_THE_WAY[error.errno]
    return f"{culprit} {trouble} ({error.strerror}): {way_out}"


@contextmanager
def files_as_mistakes() -> Iterator[None]:
    """Raise a UserError for each error of the system that is about a file the user named."""
    try:
        yield
    except OSError as error:
        complaint = disk_complaint(error)
        if complaint is None:
            raise
        raise UserError(complaint) from error


def _forbidden(path: str) -> str:
    """What is not permitted with a file or folder, as far as its rights tell."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.exists(path):
        return "made" if os.access(folder, os.X_OK) else "reached"
    if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        return "read"
    if not os.access(path, os.W_OK):
        return "written"
    return "used" if os.access(folder, os.W_OK) else "replaced"
