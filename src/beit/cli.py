"""The command line: what a person types, and what they are told.

Progress goes to standard error, results to standard output; with `--json` the last line of standard
output is one JSON object. Exit status: 0 done, 2 the user's mistake, 1 ours (with a traceback where
a sentence does not say it all), 128 + the signal's number when a signal ended the run (its state is
saved). Nothing heavy is imported before a command is known, so that `--help` answers at once.
"""

import argparse
import difflib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from beit import __version__
from beit.errors import Interrupted, UserError

SOURCES = (
    "a folder of pictures (flat, nested, or one folder a class), a .tar or a folder of them, "
    "digits, torchvision:NAME or hf:NAME"
)
OVERRIDES = (
    "Any recipe field can be set by its dotted name, as in --optim.lr 3e-4; "
    "`beit recipes show NAME` lists them all."
)


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence instead of a usage dump."""

    def error(self, message: str) -> NoReturn:
        """Raise what `main` turns into exit status 2."""
        raise UserError(f"{_nearest_choice(message)}; see `{self.prog} --help`")


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    try:
        options = _options(list(sys.argv[1:] if argv is None else argv))
        result: dict[str, Any] | None = options.run(options)
        if result and options.json:  # ranks beside the first have none
            print(json.dumps(result, default=str), flush=True)
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
        return _ours(error)


def _options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; what sets recipe fields is kept as `overrides`."""
    plain, overrides = _without_overrides(arguments)
    options, rest = parser().parse_known_args(plain)
    rest += overrides
    if rest and not getattr(options, "takes_overrides", False):
        raise UserError(_unexpected(rest[0], options))
    options.overrides, options.argv = rest, arguments
    return options


def _without_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
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


def _nobody_reads() -> int:
    """Leave in peace when whoever read our output has left; no complaint at exit either."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _ours(error: Exception) -> int:
    """Tell a failure that is not the user's: in a sentence where that says it all."""
    from beit.recipes.failures import sentence_of

    sentence = sentence_of(error)
    if sentence is not None:
        return _complain(sentence, 1)
    traceback.print_exception(error)
    return _complain("this is a fault of beit's; please report it with the lines above", 1)


def _complain(sentence: str, status: int) -> int:
    print(f"beit: {sentence}", file=sys.stderr, flush=True)
    return status


def _unexpected(argument: str, options: argparse.Namespace) -> str:
    name = argument.partition("=")[0]
    near = difflib.get_close_matches(name, _flags(options), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"see `beit {options.command} --help`"
    return f"{options.command} does not take {argument!r}; {hint}"


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="beit",
        description="BEiT: from a folder of pictures to a pre-trained vision Transformer.",
        epilog="A first look: `beit demo`. Everything works without a network.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"beit {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _demo(commands)
    _training(commands, "tokenizer", "train an image tokenizer (discrete VAE)", _run_tokenizer)
    pretrain = _training(commands, "pretrain", "pre-train BEiT on its tokens", _run_pretrain)
    pretrain.add_argument(
        "--tokenizer",
        metavar="T",
        help="a trained one's run folder, or DALL-E's encoder.pkl; one is trained first without it",
    )
    _data(commands)
    _recipes(commands)
    _report(commands)
    _convert(commands)
    return top


def _command(commands: Any, name: str, help_text: str, run: Any, **more: Any) -> Parser:
    command: Parser = commands.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False, **more
    )
    command.add_argument("--json", action="store_true", help="end with the result as one JSON line")
    command.set_defaults(run=run)
    return command


def _demo(commands: Any) -> None:
    text = "the whole story in minutes, on scikit-learn's digits or on your own pictures"
    demo = _command(commands, "demo", text, _run_demo)
    demo.add_argument("--data", metavar="SRC", default="digits", help=SOURCES)
    demo.add_argument("--out", metavar="RUN", default="runs/demo", help="run folder (runs/demo)")
    demo.add_argument("--seed", type=int, default=0, help="key of every draw (0)")
    demo.add_argument("--resume", action="store_true", help="continue the demo in --out")


def _training(commands: Any, name: str, text: str, run: Any) -> Parser:
    command = _command(commands, name, text, run, epilog=OVERRIDES)
    command.set_defaults(takes_overrides=True)
    command.add_argument("recipe", metavar="RECIPE", help="a name from `beit recipes list`")
    command.add_argument("--data", metavar="SRC", required=True, help=SOURCES)
    command.add_argument("--out", metavar="RUN", required=True, help="run folder to make")
    command.add_argument("--resume", action="store_true", help="continue the run in RUN")
    command.add_argument(
        "--accept-changed-data", action="store_true", help="resume although the pictures changed"
    )
    command.add_argument("--device", help="cpu, cuda or cuda:N; the best there is by default")
    many = command.add_mutually_exclusive_group()
    many.add_argument("--gpus", type=int, metavar="N", help="one process on each of N GPUs")
    many.add_argument("--processes", type=int, metavar="N", help="N processes on the CPU")
    return command


def _data(commands: Any) -> None:
    data = commands.add_parser(
        "data", help="look at pictures before they cost a run", allow_abbrev=False
    )
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    texts = {
        "check": "read every picture and list the bad ones",
        "info": "count pictures, classes and sizes",
    }
    for name, text in texts.items():
        action = _command(actions, name, text, _run_data)
        action.add_argument("data", metavar="SRC", help=SOURCES)
        action.add_argument("--split", choices=("train", "val", "all"), default="all")
        action.add_argument("--workers", type=int, default=None, metavar="N", help="processes")


def _recipes(commands: Any) -> None:
    recipes = commands.add_parser("recipes", help="what can be trained", allow_abbrev=False)
    actions = recipes.add_subparsers(dest="action", metavar="ACTION", required=True)
    _command(actions, "list", "name every recipe", _run_recipes_list)
    show = _command(
        actions, "show", "every field of a recipe, its size and cost", _run_recipes_show
    )
    show.add_argument("recipe", metavar="NAME", help="a name from `beit recipes list`")
    show.set_defaults(takes_overrides=True)


def _report(commands: Any) -> None:
    text = "one self-contained HTML file: curves, reconstructions, masks, codebook use"
    report = _command(commands, "report", text, _run_report)
    report.add_argument("run_folder", metavar="RUN", help="a run folder")
    report.add_argument("--data", metavar="SRC", help="pictures to show; the run's own by default")


def _convert(commands: Any) -> None:
    text = "take other people's weights in, or write ours for their programs"
    convert = _command(commands, "convert", text, _run_convert)
    convert.add_argument(
        "source", metavar="IN", help="a folder, a .pth, a .safetensors, or DALL-E's encoder.pkl"
    )
    convert.add_argument("target", metavar="OUT", help="folder or file to make")
    formats = ("beit", "reference", "transformers", "timm")
    convert.add_argument("--to", required=True, choices=formats, help="whose program is to read it")
    convert.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), help="if no square")
    convert.add_argument("--heads", type=int, metavar="N", help="attention heads, if nothing says")
    convert.add_argument("--ema", action="store_true", help="the moving average of the weights")
    convert.add_argument("--encoder-only", action="store_true", help="leave the head out")


def _launched(options: argparse.Namespace) -> bool:
    """Start the ranks when several are asked for; true in the parent, which has then waited."""
    count = options.processes if options.gpus is None else options.gpus
    if count is None:
        return False
    if options.device is not None:
        raise UserError("--gpus and --processes choose the devices; leave --device away")
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


def _run_tokenizer(options: argparse.Namespace) -> dict[str, Any] | None:
    from beit.recipes.named import tokenizer_recipe
    from beit.recipes.overrides import apply_overrides

    recipe = apply_overrides(tokenizer_recipe(options.recipe), options.overrides, _flags(options))
    if _launched(options):
        return None
    from beit.recipes.stage import RunRequest
    from beit.recipes.train import train_tokenizer

    return train_tokenizer(recipe, RunRequest.from_options(options))


def _run_pretrain(options: argparse.Namespace) -> dict[str, Any] | None:
    from beit.recipes.named import pretrain_recipe
    from beit.recipes.overrides import apply_overrides

    recipe = apply_overrides(pretrain_recipe(options.recipe), options.overrides, _flags(options))
    if _launched(options):
        return None
    from beit.recipes.stage import RunRequest
    from beit.recipes.train import pretrain

    return pretrain(recipe, RunRequest.from_options(options), options.tokenizer)


def _flags(options: argparse.Namespace) -> list[str]:
    hidden = {"run", "command", "recipe", "takes_overrides", "overrides", "argv"}
    return [f"--{name.replace('_', '-')}" for name in vars(options) if name not in hidden]


def _run_demo(options: argparse.Namespace) -> dict[str, Any]:
    from beit.recipes.demo import demo

    return demo(options.data, Path(options.out), seed=options.seed, resume=options.resume)


def _run_data(options: argparse.Namespace) -> dict[str, Any]:
    from beit.recipes.inspection import check_data, data_info

    if options.action == "info":
        return data_info(options.data, options.split)
    return check_data(options.data, options.split, options.workers)


def _run_recipes_list(options: argparse.Namespace) -> dict[str, Any]:
    from beit.recipes.named import RECIPES, describe

    described = {name: describe(name) for name in RECIPES}
    if not options.json:
        for name, text in described.items():
            print(f"{name:12} {text}")
    return {"recipes": described}


def _run_recipes_show(options: argparse.Namespace) -> dict[str, Any]:
    from beit.recipes.inspection import show_recipe

    return show_recipe(options.recipe, options.overrides, quiet=options.json)


def _run_report(options: argparse.Namespace) -> dict[str, Any]:
    from beit.recipes.reporting import write_report

    page = write_report(Path(options.run_folder), options.data)
    if not options.json:
        print(f"report: {page}")
    return {"report": str(page)}


def _run_convert(options: argparse.Namespace) -> dict[str, Any]:
    from beit.recipes.conversion import Options, convert

    size = None if options.image_size is None else (options.image_size[0], options.image_size[1])
    wanted = Options(size, options.heads, options.ema, options.encoder_only)
    result = convert(options.source, options.target, options.to, wanted)
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if not options.json:
        print(f"{result['from']} -> {result['to']}: {result['out']}")
    return result


if __name__ == "__main__":
    sys.exit(main())
