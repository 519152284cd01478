"""Where a command computes: the options that say it, and starting several ranks."""

import argparse
import sys
from collections.abc import Sequence

from beit.cli.arguments import Parser
from beit.errors import UserError


def add_devices(command: Parser) -> None:
    """Add the options that say where to compute."""
    command.add_argument("--device", help="cpu, cuda or cuda:N; by default the best available")
    many = command.add_mutually_exclusive_group()
    many.add_argument("--gpus", type=int, metavar="N", help="one process on each of N GPUs")
    many.add_argument("--processes", type=int, metavar="N", help="N processes on the CPU")


def launched(options: argparse.Namespace) -> bool:
    """Start the ranks when several are asked for; true in the parent, which has then waited."""
    count = options.processes if options.gpus is None else options.gpus
    if count is None:
        return False
    if options.device is not None:
        raise UserError("--gpus and --processes choose the devices; leave out --device")
    if count == 1:
        return False
    from beit.engine.distribution import launch

    kind = "cpu" if options.gpus is None else "cuda"
    rank = [sys.executable, "-m", "beit", *_without_processes(options.argv), "--device", kind]
    launch(count, rank, kind)
    return True


def _without_processes(argv: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for argument in argv:
        if not skip and argument.partition("=")[0] not in ("--gpus", "--processes"):
            kept.append(argument)
            continue
        skip = not skip and "=" not in argument
    return kept
