"""Whether `beit plan` agrees with real runs: both stages of a recipe, planned and then run.

    python benchmarks/planning.py --recipe digits --data digits --steps 100

Each repeat plans first and then runs, one after the other in this process: the tokenizer's training
and a pre-training with live tokens, evaluation included, by the clock around the whole call. What
the plan does not count (opening the data, checkpoints, logs) is in the real time; a first run of
two steps, which imports everything, is not.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beit
from beit.commands.planning.planning import PlanRequest, plan
from beit.recipes.models import PretrainRecipe
from harness import RESULTS, record


def main() -> None:
    """Plan, run, compare, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--data", required=True, help="what `beit pretrain --data` takes")
    parser.add_argument("--steps", type=int, default=100, help="of each stage")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="that a plan times steps for")
    parser.add_argument("--more", action="store_true", help="keep the rows of the record there is")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    file = options.results / "planning.json"
    rows = json.loads(file.read_text())["rows"] if options.more and file.is_file() else []
    run(beit.recipe("digits", {"optim.steps": 2, "tokenizer.optim.steps": 2}), "digits")
    for _ in range(options.repeats):
        rows += compared(options.recipe, options.data, options.steps, options.seconds)
    print(record("planning", rows, options.results))


def compared(name: str, data: str, steps: int, seconds: float) -> list[dict[str, Any]]:
    """One plan against one run of each stage."""
    changes = {"optim.steps": steps, "tokenizer.optim.steps": steps}
    recipe = beit.recipe(name, changes)
    planned = plan(recipe, PlanRequest(data=data, seconds=seconds))
    real = run(recipe, data)
    rows = []
    for stage, taken in real.items():
        told = planned["stages"][stage]
        rows.append(
            {
                "recipe": name,
                "data": Path(data).name,
                "stage": stage,
                "steps": steps,
                "evaluation": round(told["evaluation_seconds"], 2),
                "predicted": round(told["seconds"], 2),
                "real": round(taken, 2),
                "ratio": round(told["seconds"] / taken, 3),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def run(recipe: PretrainRecipe, data: str) -> dict[str, float]:
    """Both stages; the seconds of each, by the name that the plan has for it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, out = Path(folder) / "tokenizer", Path(folder) / "run"
        return {
            "tokenizer": _clocked(lambda: beit.train_tokenizer(recipe.tokenizer, data, tokenizer)),
            "pretrain_live": _clocked(
                lambda: beit.pretrain(recipe, data, out, tokenizer=tokenizer)
            ),
        }


def _clocked(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
