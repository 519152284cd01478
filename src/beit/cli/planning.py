"""The command that tells what a run would cost."""

import argparse
from typing import Any

from beit.cli.arguments import OVERRIDES, RECIPES, Parser, add_command, flags


def add_plan(commands: Any) -> None:
    """Add `plan`."""
    text = "estimate the time, memory and disk of a run"
    plan = add_command(commands, "plan", text, _run_plan, epilog=OVERRIDES)
    plan.set_defaults(takes_overrides=True)
    plan.add_argument("recipe", metavar="RECIPE", help=RECIPES)
    plan.add_argument("--images", type=int, metavar="N", help="how many pictures to train on; or")
    plan.add_argument("--data", metavar="SRC", help="the pictures themselves: reading is timed too")
    plan.add_argument(
        "--devices", type=int, default=1, metavar="K", help="devices that share each batch (1)"
    )
    plan.add_argument(
        "--machine",
        default="here",
        metavar="NAME",
        help="here (the default: real steps are timed), h200 or two-cores",
    )
    plan.add_argument(
        "--rate", type=float, metavar="TFLOPS", help="matrix product rate of another machine"
    )
    plan.add_argument(
        "--share", type=float, metavar="S", help="share of that rate a step reaches (0.5)"
    )
    plan.add_argument("--memory", type=float, metavar="GB", help="device memory of another machine")
    plan.add_argument("--bank-views", type=int, metavar="K", help="views of each picture in a bank")
    add_task(plan)
    plan.add_argument("--device", help="where to time steps: cpu, cuda or cuda:N")
    plan.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="roughly how long to time steps (20)",
    )


def add_task(command: Parser) -> None:
    """Add the option that says whose recipe a name is."""
    command.add_argument(
        "--task",
        choices=("pretrain", "classify", "segment"),
        help="whose recipe it is, where several tasks have one of that name (pretrain)",
    )


def _run_plan(options: argparse.Namespace) -> dict[str, Any]:
    from beit.recipes.catalogue import recipe_named
    from beit.recipes.overrides import apply_overrides

    _, named = recipe_named(options.recipe, options.task)
    recipe = apply_overrides(named, options.overrides, flags(options))
    from beit.commands.planning.plan_text import plan_text
    from beit.commands.planning.planning import PlanRequest, plan

    found = plan(
        recipe,
        PlanRequest(
            images=options.images,
            data=options.data,
            devices=options.devices,
            machine=options.machine,
            rate=None if options.rate is None else options.rate * 1e12,
            share=options.share,
            memory=None if options.memory is None else options.memory * 1e9,
            bank_views=options.bank_views,
            device=options.device,
            seconds=options.seconds,
        ),
    )
    if not options.json:
        print(plan_text(found))
    return found
