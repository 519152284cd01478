"""The command line: what a person types, and what they are told.

Progress goes to standard error, results to standard output; with `--json` the last line of standard
output is one JSON object. Exit status: 0 done, 2 the user's mistake, a full disk or a file that the
system refuses, 1 ours (with a traceback where a sentence does not say it all), 128 + the signal's
number when a signal ended the run (its state is saved). Nothing heavy is imported before a command
is known, so that `--help` answers at once.
"""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from beit.cli import looking, training, using
from beit.cli.arguments import Parser, json_last, require_values, unexpected, without_overrides
from beit.errors import Interrupted, UserError, disk_complaint
from beit.files import json_of_measured
from beit.version import VERSION

__all__ = ["main", "parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    _show_any_letter()
    try:
        options = _options(list(sys.argv[1:] if argv is None else argv))
        result: dict[str, Any] | None = options.run(options)
        if result and options.json:  # ranks beside the first have none
            print(json_of_measured(result, default=str), flush=True)
        return 0
    except UserError as error:
        return _complain(str(error), 2)
    except Interrupted as stop:
        return _complain(str(stop), 128 + int(getattr(stop, "signal", 2)))
    except KeyboardInterrupt:
        return _complain("stopped by Ctrl-C", 130)
    except BrokenPipeError:
        return _nobody_reads()
    except Exception as error:
        complaint = disk_complaint(error)
        return _ours(error) if complaint is None else _complain(complaint, 2)


def _options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; what sets recipe fields is kept as `overrides`."""
    plain, overrides = without_overrides(json_last(arguments))
    options, rest = parser().parse_known_args(plain)
    rest += overrides
    if rest and not getattr(options, "takes_overrides", False):
        raise UserError(unexpected(rest[0], options))
    require_values(options, arguments)
    options.overrides, options.argv = rest, arguments
    return options


def _show_any_letter() -> None:
    """Escape what a terminal has no letter for: a name or a table's rule must not end a command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError, ValueError):  # a stream that was put in another's place, or closed
            sys.stdout.reconfigure(errors="backslashreplace")


def _nobody_reads() -> int:
    """Leave in peace when whoever read our output has left; no complaint at exit either."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _ours(error: Exception) -> int:
    """Tell a failure that is not the user's: in a sentence where that says it all."""
    from beit.commands.failures import sentence_of

    sentence = sentence_of(error)
    if sentence is not None:
        return _complain(sentence, 1)
    traceback.print_exception(error)
    return _complain("this is a fault of beit's; please report it with the lines above", 1)


def _complain(sentence: str, status: int) -> int:
    print(f"beit: {sentence}", file=sys.stderr, flush=True)
    return status


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="beit",
        description="BEiT: from a folder of pictures to a pre-trained vision Transformer.",
        epilog="A first look: `beit demo`. Everything works without a network.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"beit {VERSION}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    looking.add(commands)
    training.add(commands)
    using.add(commands)
    return top
