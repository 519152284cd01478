"""Commands that compute once what runs would compute again and again."""

import argparse
from pathlib import Path
from typing import Any

from beit.cli.arguments import OVERRIDES, SOURCES, add_command, flags
from beit.cli.devices import add_devices, launched
from beit.errors import UserError


def add_bank(commands: Any) -> None:
    """Add `bank`."""
    text = "compute the visual tokens of a pre-training run once, to be used by many"
    bank = add_command(commands, "bank", text, _run_bank, epilog=OVERRIDES)
    bank.set_defaults(takes_overrides=True)
    bank.add_argument("recipe", metavar="RECIPE", help="of the run: a name from `recipes list`")
    bank.add_argument("--data", metavar="SRC", required=True, help=SOURCES)
    bank.add_argument(
        "--out", metavar="BANK", required=True, help="folder to make, or to go on with"
    )
    bank.add_argument(
        "--tokenizer",
        metavar="T",
        required=True,
        help="a trained one's run folder, or DALL-E's encoder.pkl",
    )
    bank.add_argument(
        "--bank-views",
        type=int,
        metavar="K",
        help="views of each picture, used again in turn; without it each epoch has a new one",
    )
    add_devices(bank)


def add_pack(actions: Any) -> None:
    """Add `data pack`."""
    text = "make pictures smaller once, into tar files with an index"
    command = add_command(actions, "pack", text, _run_pack)
    command.add_argument("data", metavar="SRC", help=SOURCES)
    command.add_argument(
        "--out", metavar="FOLDER", required=True, help="folder to make, or to go on with"
    )
    command.add_argument(
        "--short-side",
        type=int,
        default=256,
        metavar="PIXELS",
        help="of larger pictures (256); smaller ones stay as they are",
    )
    command.add_argument("--quality", type=int, default=90, metavar="Q", help="of the JPEG (90)")
    command.add_argument(
        "--shard-size", type=int, default=2000, metavar="N", help="pictures a tar file (2000)"
    )
    command.add_argument("--workers", type=int, default=None, metavar="N", help="processes")


def _run_pack(options: argparse.Namespace) -> dict[str, Any]:
    from beit.recipes.packing import PackSettings, pack_data

    settings = PackSettings(options.short_side, options.quality, options.shard_size)
    return pack_data(options.data, Path(options.out), settings, options.workers)


def _run_bank(options: argparse.Namespace) -> dict[str, Any] | None:
    from beit.recipes.named import pretrain_recipe
    from beit.recipes.overrides import apply_overrides

    if options.bank_views is not None and options.bank_views < 1:
        raise UserError(f"--bank-views {options.bank_views}: a bank holds at least one view")
    recipe = apply_overrides(pretrain_recipe(options.recipe), options.overrides, flags(options))
    if launched(options):
        return None
    from beit.recipes.banking import make_bank
    from beit.recipes.stage import RunRequest, device_of

    request = RunRequest(options.data, Path(options.out), device=device_of(options))
    return make_bank(recipe, request, options.tokenizer, options.bank_views)
