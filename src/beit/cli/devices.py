"""Where a command computes: the options that say it, and starting several ranks."""

import argparse
import sys
from collections.abc import Sequence

from beit.cli.arguments import Parser
from beit.errors import UserError

_FOR_THE_PARENT = ("--gpus", "--processes", "--restarts")


def add_devices(command: Parser) -> None:
    """Add the options that say where to compute."""
    command.add_argument("--device", help="cpu, cuda or cuda:N; by default the best available")
    many = command.add_mutually_exclusive_group()
    many.add_argument("--gpus", type=int, metavar="N", help="one process on each of N GPUs")
    many.add_argument("--processes", type=int, metavar="N", help="N processes on the CPU")
    command.add_argument(
        "--restarts",
        type=int,
        metavar="N",
        help="if one of several processes dies, resume all of them, up to N times (0)",
    )


def device_of(options: argparse.Namespace) -> str | None:
    """The device that a command line asks for, in so many words or by a number of processes."""
    if options.device is not None:
        return str(options.device)
    return "cuda" if options.gpus else "cpu" if options.processes else None


def launched(options: argparse.Namespace) -> bool:
    """Start the ranks when several are asked for; true in the parent, which has then waited."""
    count = options.processes if options.gpus is None else options.gpus
    if options.restarts is not None and (count in (None, 1) or options.restarts < 0):
        raise UserError(
            f"--restarts {options.restarts} needs 0 or more and several ranks: "
            "say how many by --gpus or --processes"
        )
    if count is None:
        return False
    if options.device is not None:
        raise UserError("--gpus and --processes choose the devices; leave out --device")
    if count == 1:
        return False
    from beit.engine.distribution import launch

    kind = "cpu" if options.gpus is None else "cuda"
    rank = [sys.executable, "-m", "beit", *_for_ranks(options.argv), "--device", kind]
    launch(count, rank, kind, restarts=options.restarts or 0)
    return True


def _for_ranks(argv: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for argument in argv:
        if not skip and argument.partition("=")[0] not in _FOR_THE_PARENT:
            kept.append(argument)
            continue
        skip = not skip and "=" not in argument
    return kept
