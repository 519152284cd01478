"""Commands that train."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit.cli.arguments import OVERRIDES, PAIRS, RECIPES, SOURCES, Parser, add_command, flags
from beit.cli.devices import add_devices, device_of, launched
from beit.cli.preparing import add_bank

if TYPE_CHECKING:
    from beit.commands.assembly.stage import RunRequest


def add(commands: Any) -> None:
    """Add `tokenizer`, `bank`, `pretrain`, `classify` and `segment`."""
    _training(commands, "tokenizer", "train an image tokenizer (discrete VAE)", _run_tokenizer)
    pretrain = _training(
        commands, "pretrain", "pre-train BEiT on a tokenizer's visual tokens", _run_pretrain
    )
    pretrain.add_argument(
        "--tokenizer",
        metavar="T",
        help="run folder of a trained tokenizer, or DALL-E's encoder.pkl; "
        "without it one is trained first",
    )
    pretrain.add_argument("--bank", metavar="BANK", help="visual tokens computed by `beit bank`")
    pretrain.add_argument(
        "--init",
        metavar="CKPT",
        default="none",
        help="continue from a model, with its tokenizer if that is beside it: a run, a model "
        "folder, a weight file or timm:NAME; by default the weights are fresh",
    )
    add_bank(commands)

    _fine_tuning(commands, "classify", "fine-tune a classifier", _run_classify)
    text = "fine-tune a segmenter: a class for each pixel"
    _fine_tuning(commands, "segment", text, _run_segment, PAIRS)


def _fine_tuning(commands: Any, name: str, text: str, run: Any, data: str = SOURCES) -> None:
    command = _training(commands, name, text, run, data)
    command.add_argument(
        "--init",
        metavar="CKPT",
        required=True,
        help="what to start from: a run (pretrain, classify, segment), a model folder, a weight "
        "file, timm:NAME, or none for training from scratch",
    )
    command.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="short for --encoder.image_size [N,N]"
    )
    command.add_argument(
        "--patience", type=int, metavar="N", help="stop after N evaluations without improvement"
    )


def _training(commands: Any, name: str, text: str, run: Any, data: str = SOURCES) -> Parser:
    command = add_command(commands, name, text, run, epilog=OVERRIDES)
    command.set_defaults(takes_overrides=True)
    command.add_argument("recipe", metavar="RECIPE", help=RECIPES)
    command.add_argument("--data", metavar="SRC", required=True, help=data)
    command.add_argument("--out", metavar="RUN", required=True, help="run folder to create")
    command.add_argument("--resume", action="store_true", help="continue the run in RUN")
    command.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="resume even if the pictures have changed",
    )
    add_devices(command)
    return command


def _run_tokenizer(options: argparse.Namespace) -> dict[str, Any] | None:
    from beit.recipes.catalogue import wanted_tokenizer_recipe
    from beit.recipes.overrides import apply_overrides

    named = wanted_tokenizer_recipe(options.recipe)
    recipe = apply_overrides(named, options.overrides, flags(options))
    if launched(options):
        return None
    from beit.commands.training.tokenizer import train_tokenizer

    return train_tokenizer(recipe, request_of(options))


def _run_pretrain(options: argparse.Namespace) -> dict[str, Any] | None:
    from beit.recipes.catalogue import wanted_recipe
    from beit.recipes.models import PretrainRecipe
    from beit.recipes.overrides import apply_overrides

    recipe = apply_overrides(
        wanted_recipe(options.recipe, PretrainRecipe), options.overrides, flags(options)
    )
    if launched(options):
        return None
    from beit.commands.training.pretrain import pretrain

    request = request_of(options)
    return pretrain(recipe, request, options.tokenizer, options.bank, options.init)


def _run_classify(options: argparse.Namespace) -> dict[str, Any] | None:
    from beit.recipes.catalogue import wanted_recipe
    from beit.recipes.downstream_models import ClassifyRecipe
    from beit.recipes.overrides import apply_overrides

    words = [*_shorthand(options), *options.overrides]
    recipe = apply_overrides(wanted_recipe(options.recipe, ClassifyRecipe), words, flags(options))
    if launched(options):
        return None
    from beit.commands.training.classify import classify

    return classify(recipe, request_of(options), options.init)


def _run_segment(options: argparse.Namespace) -> dict[str, Any] | None:
    from beit.recipes.catalogue import wanted_recipe
    from beit.recipes.downstream_models import SegmentRecipe
    from beit.recipes.overrides import apply_overrides

    words = [*_shorthand(options), *options.overrides]
    recipe = apply_overrides(wanted_recipe(options.recipe, SegmentRecipe), words, flags(options))
    if launched(options):
        return None
    from beit.commands.training.segment import segment

    return segment(recipe, request_of(options), options.init)


def _shorthand(options: argparse.Namespace) -> list[str]:
    """Recipe fields that have a flag of their own, as dotted names."""
    words = []
    if options.image_size is not None:
        words.append(f"--encoder.image_size=[{options.image_size},{options.image_size}]")
    if options.patience is not None:
        words.append(f"--patience={options.patience}")
    return words


def request_of(options: argparse.Namespace) -> "RunRequest":
    """What is asked of a run beside its recipe."""
    from beit.commands.assembly.stage import RunRequest

    out, device = Path(options.out), device_of(options)
    return RunRequest(options.data, out, options.resume, options.accept_changed_data, device)
