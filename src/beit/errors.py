"""The two ways a run ends early: the user's mistake, and a stop that was asked for."""


class UserError(ValueError):
    """Bad input. The message is one sentence that names the culprit and the way out.

    The command line prints it and exits with status 2; nothing has been lost.
    """


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived; the state is saved and the message tells how to go on."""
