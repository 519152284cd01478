"""The two ways a run ends early: the user's mistake, and a stop that was asked for."""

import errno

_NO_ROOM = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT})


class UserError(ValueError):
    """Bad input. The message is one sentence that names the culprit and the way out.

    The command line prints it and exits with status 2; nothing has been lost.
    """


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived; the state is saved and the message tells how to go on."""


def disk_complaint(error: BaseException) -> str | None:
    """What to tell when a disk is full, over its quota or read-only; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        return None
    culprit = error.filename2 or error.filename
    where = "the disk" if culprit is None else culprit
    return (
        f"{where} cannot be written ({error.strerror}): make room there and repeat the command, "
        "a run with --resume"
    )
