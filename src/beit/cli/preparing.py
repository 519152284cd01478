"""Commands that compute once what runs would compute again and again."""

import argparse
from pathlib import Path
from typing import Any

from beit.cli.arguments import OVERRIDES, RECIPES, SOURCES, add_command, flags
from beit.cli.devices import add_devices, device_of, launched
from beit.errors import UserError


def add_bank(commands: Any) -> None:
    """Add `bank`."""
    text = "compute visual tokens once, for many pre-training runs"
    bank = add_command(commands, "bank", text, _run_bank, epilog=OVERRIDES)
    bank.set_defaults(takes_overrides=True)
    bank.add_argument("recipe", metavar="RECIPE", help=f"the run's recipe: {RECIPES}")
    bank.add_argument("--data", metavar="SRC", required=True, help=SOURCES)
    bank.add_argument(
        "--out", metavar="BANK", required=True, help="folder to create, or to continue"
    )
    bank.add_argument(
        "--tokenizer",
        metavar="T",
        required=True,
        help="run folder of a trained tokenizer, or DALL-E's encoder.pkl",
    )
    bank.add_argument(
        "--bank-views",
        type=int,
        metavar="K",
        help="views per picture, reused in turn; by default every epoch gets a new one",
    )
    add_devices(bank)


def add_pack(actions: Any) -> None:
    """Add `data pack`."""
    text = "shrink pictures once and pack them into indexed tar files"
    command = add_command(actions, "pack", text, _run_pack)
    command.add_argument("data", metavar="SRC", help=SOURCES)
    command.add_argument(
        "--out", metavar="FOLDER", required=True, help="folder to create, or to continue"
    )
    command.add_argument(
        "--short-side",
        type=int,
        default=256,
        metavar="PIXELS",
        help="shrink the short side to this (256); smaller pictures stay as they are",
    )
    command.add_argument("--quality", type=int, default=90, metavar="Q", help="JPEG quality (90)")
    command.add_argument(
        "--shard-size", type=int, default=2000, metavar="N", help="pictures per tar file (2000)"
    )
    command.add_argument(
        "--workers", type=int, default=None, metavar="N", help="processes; one per core by default"
    )


def _run_pack(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.preparing.packing import PackSettings, pack_data

    settings = PackSettings(options.short_side, options.quality, options.shard_size)
    return pack_data(options.data, Path(options.out), settings, options.workers)


def _run_bank(options: argparse.Namespace) -> dict[str, Any] | None:
    from beit.recipes.catalogue import wanted_recipe
    from beit.recipes.models import PretrainRecipe
    from beit.recipes.overrides import apply_overrides

    if options.bank_views is not None and options.bank_views < 1:
        raise UserError(f"--bank-views {options.bank_views}: a bank holds at least one view")
    named = wanted_recipe(options.recipe, PretrainRecipe)
    recipe = apply_overrides(named, options.overrides, flags(options))
    if launched(options):
        return None
    from beit.commands.assembly.stage import RunRequest
    from beit.commands.preparing.banking import make_bank

    request = RunRequest(options.data, Path(options.out), device=device_of(options))
    return make_bank(recipe, request, options.tokenizer, options.bank_views)
