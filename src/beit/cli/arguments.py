"""Reading a command line: one sentence for every mistake, dotted names for recipe fields.

Departure: not by tyro, as was planned; see docs/ARCHITECTURE.md.
"""

import argparse
import difflib
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any, NoReturn

from beit.errors import UserError

SOURCES = (
    "a folder of pictures (flat, nested, or one folder a class), a .tar or a folder of them, "
    "digits, torchvision:NAME or hf:NAME"
)
PAIRS = (
    "a folder with images/{train,val} and annotations/{train,val}: a mask of class numbers for "
    "each picture, 255 ignored (ADE20K's layout)"
)
RECIPES = "a name from `beit recipes list`, a run folder, or a recipe's .yaml file"
OVERRIDES = (
    "Any recipe field can be set by its dotted name, for example --optim.lr 3e-4; "
    "`beit recipes show NAME` lists them all."
)


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence instead of a usage dump."""

    def error(self, message: str) -> NoReturn:
        """Raise what `main` turns into exit status 2."""
        raise UserError(f"{_nearest_choice(message)}; see `{self.prog} --help`")

    @property
    def flags(self) -> list[str]:
        """The long options that it takes."""
        return [name for name in self._option_string_actions if name.startswith("--")]


def _nearest_choice(message: str) -> str:
    """Add the nearest right word to argparse's complaint about a wrong one."""
    head, found, choices = message.partition("(choose from ")
    if not found:
        return message
    wrong = head.split("'")[1] if "'" in head else ""
    words = [word.strip(" '\")") for word in choices.split(",")]
    near = difflib.get_close_matches(wrong, words, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(words)}"
    return f"there is no {wrong!r} here; {hint}"


def add_command(commands: Any, name: str, help_text: str, run: Any, **more: Any) -> Parser:
    """Add a command and the function that runs it; all take `--json`."""
    command: Parser = commands.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False, **more
    )
    command.add_argument(
        "--json", action="store_true", help="print the result as JSON on the last line"
    )
    command.set_defaults(run=run, parser=command)
    return command


def without_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off `--dotted.name value`, so that argparse cannot take the value for a RECIPE."""
    plain, overrides, waiting = [], [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, _ = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            plain.append(argument)
        elif equals or not waiting or waiting[0].startswith("--"):
            overrides.append(argument)
        else:
            overrides.append(f"{argument}={waiting.pop(0)}")
    return plain, overrides


def json_last(arguments: Sequence[str]) -> list[str]:
    """Let `--json` stand before the command too; argparse knows it as the command's own."""
    rest = list(dropwhile(lambda word: word == "--json", arguments))
    return [*rest, "--json"] if 0 < len(rest) < len(arguments) else list(arguments)


def require_values(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Refuse options that are set to nothing, as by a shell's variable that is not."""
    for name, value in vars(options).items():
        if name != "note" and (value == "" or (isinstance(value, list) and "" in value)):
            flag = f"--{name.replace('_', '-')}"
            typed = any(word.partition("=")[0] == flag for word in arguments)
            raise UserError(f"{flag if typed else name} is empty; give it a value")


def unexpected(argument: str, options: argparse.Namespace) -> str:
    """Say that an argument is not known, with the nearest one that is."""
    name = argument.partition("=")[0]
    near = difflib.get_close_matches(name, flags(options), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"see `beit {options.command} --help`"
    return f"{options.command} does not take {argument!r}; {hint}"


def flags(options: argparse.Namespace) -> list[str]:
    """The flags that a command has."""
    parser: Parser = options.parser
    return parser.flags
