"""Commands that look at things, or show what can be done."""

import argparse
from pathlib import Path
from typing import Any

from beit.cli.arguments import RECIPES, SOURCES, add_command
from beit.cli.planning import add_plan, add_task
from beit.cli.preparing import add_pack


def add(commands: Any) -> None:
    """Add `demo`, `data`, `recipes`, `plan`, `report` and `compare`."""
    _demo(commands)
    _data(commands)
    _recipes(commands)
    add_plan(commands)
    _report(commands)
    _compare(commands)


def _demo(commands: Any) -> None:
    text = "see everything work in minutes, on scikit-learn's digits or on your own pictures"
    demo = add_command(commands, "demo", text, _run_demo)
    demo.add_argument("--data", metavar="SRC", default="digits", help=SOURCES)
    demo.add_argument("--out", metavar="RUN", default="runs/demo", help="run folder (runs/demo)")
    demo.add_argument("--seed", type=int, default=0, help="random seed (0)")
    demo.add_argument("--resume", action="store_true", help="continue the demo in --out")


def _data(commands: Any) -> None:
    data = commands.add_parser(
        "data", help="check, count or pack pictures before training", allow_abbrev=False
    )
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    texts = {
        "check": "read every picture and list the bad ones",
        "info": "count pictures, classes and sizes",
    }
    for name, text in texts.items():
        action = add_command(actions, name, text, _run_data)
        action.add_argument("data", metavar="SRC", help=SOURCES)
        splits = ("train", "val", "all")
        action.add_argument("--split", choices=splits, default="all", help="which part (all)")
        if name == "check":
            action.add_argument(
                "--duplicates", action="store_true", help="also list pictures with equal pixels"
            )
            action.add_argument("--workers", type=int, metavar="N", help="processes that read")
    add_pack(actions)


def _recipes(commands: Any) -> None:
    recipes = commands.add_parser("recipes", help="list or show the recipes", allow_abbrev=False)
    actions = recipes.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_command(actions, "list", "list every recipe", _run_recipes_list)
    show = add_command(
        actions, "show", "show every field of a recipe, its size and cost", _run_recipes_show
    )
    show.add_argument("recipe", metavar="NAME", help=RECIPES)
    add_task(show)
    show.set_defaults(takes_overrides=True)


def _report(commands: Any) -> None:
    text = "write one self-contained HTML file: curves, reconstructions, attention, predictions"
    report = add_command(commands, "report", text, _run_report)
    report.add_argument("run_folder", metavar="RUN", help="a run folder")
    report.add_argument("--data", metavar="SRC", help="pictures to show; the run's own by default")


def _compare(commands: Any) -> None:
    text = "runs side by side: the recipe fields that differ, and what was measured last"
    compare = add_command(commands, "compare", text, _run_compare)
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run folders of one command")


def _run_demo(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.demo import demo

    return demo(options.data, Path(options.out), seed=options.seed, resume=options.resume)


def _run_data(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.looking.inspection import check_data, data_info

    if options.action == "info":
        return data_info(options.data, options.split)
    return check_data(options.data, options.split, options.workers, duplicates=options.duplicates)


def _run_recipes_list(options: argparse.Namespace) -> dict[str, Any]:
    from beit.recipes.catalogue import list_recipes

    described = list_recipes()
    if not options.json:
        for task, recipes in described.items():
            print(f"beit {task} NAME" + (" (and beit tokenizer)" if task == "pretrain" else ""))
            for name, text in recipes.items():
                print(f"  {name:32} {text}")
    return {"recipes": described}


def _run_recipes_show(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.looking.inspection import show_recipe

    return show_recipe(options.recipe, options.overrides, task=options.task, quiet=options.json)


def _run_report(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.looking.reporting import write_report

    page = write_report(options.run_folder, options.data)
    if not options.json:
        print(f"report: {page}")
    return {"report": str(page)}


def _run_compare(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.looking.comparing import compare

    return compare(options.runs, quiet=options.json)
