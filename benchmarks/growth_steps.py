"""Is the time of a step linear in the batch?"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

import beit
from beit.commands.assembly.build import (
    choose_device,
    encoder_config_of,
    fit_settings,
    mask_plan,
    pretrain_task,
    tokenizer_config,
    view_settings,
)
from beit.commands.planning.calibration import Call, Shape, steps_of
from beit.recipes.models import PretrainRecipe
from beit.tokenizer.dvae import DiscreteVAE
from harness import interleaved, record, times_faster

BATCHES = (4, 8, 16, 32)


def batches(options: argparse.Namespace) -> Path:
    """Time whole steps, live tokenizer and AdamW included, at growing batches."""
    device = choose_device(options.device)
    for size in options.sizes or ["tiny", "small"]:
        row = _growth(size, options.rounds, device)
        made = record(f"growth-batch-{size}-{device.type}", [row], options.results)
    return made


def _growth(size: str, rounds: int, device: torch.device) -> dict[str, Any]:
    sides = {str(batch): training_call(size, batch, device) for batch in BATCHES}
    seconds = interleaved(sides, rounds=rounds, device=device)
    a_picture = {name: [time / int(name) for time in times] for name, times in seconds.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first, last = str(BATCHES[0]), str(BATCHES[-1])
    row = {
        "size": size,
        "milliseconds a picture": {
            name: round(1000 * statistics.median(times), 3) for name, times in a_picture.items()
        },
        **_line(medians),
        f"a picture at {last} against {first}": times_faster(a_picture[last], a_picture[first]),
    }
    print(json.dumps(row, indent=1), flush=True)
    return row


def _line(seconds: dict[str, float]) -> dict[str, float]:
    """What a step costs whatever the batch, what each picture adds, and how straight that is."""
    sizes, times = [int(name) for name in seconds], list(seconds.values())
    line = statistics.linear_regression(sizes, times)
    off: list[float] = []
    for size, time in zip(sizes, times, strict=True):
        off.append(time / (line.intercept + line.slope * size) - 1)
    farthest = max(off, key=abs)
    logarithms = [[math.log(value) for value in values] for values in (sizes, times)]
    return {
        "milliseconds a step": round(1000 * line.intercept, 2),
        "milliseconds that a picture adds": round(1000 * line.slope, 3),
        "farthest from that line": round(farthest, 3),
        "exponent": round(statistics.linear_regression(*logarithms).slope, 3),
    }


def training_call(size: str, batch: int, device: torch.device) -> Call:
    """A step of a recipe as the engine makes it, live tokenizer included, on a drawn batch."""
    recipe: PretrainRecipe = beit.recipe(size, {"optim.batch": batch})
    torch.manual_seed(0)
    vae = DiscreteVAE(tokenizer_config(recipe.tokenizer.model)).to(device).eval()
    vae.requires_grad_(False)
    patch_view = recipe.encoder.image_size
    token_view = vae.config.view_size(encoder_config_of(recipe.encoder).grid)
    views = view_settings(recipe.views, patch_view=patch_view, token_view=token_view)
    settings = fit_settings(recipe.optim, recipe.engine, 1_000_000, device)
    shape = Shape(views, mask_plan(recipe))
    return steps_of(pretrain_task(recipe, vae), shape, settings, device)(batch)
