"""What a token bank gains: steps with live and with banked tokens, in turns, in one process.

    python benchmarks/bank.py --data imagenette-160 --sizes tiny base --rounds 5

Both sides train the same model on the same batches; their losses are equal to the last bit in
float32 before anything is timed. A step is: augmentation, tokens, forward, backward, AdamW. The
tokenizer's weights are drawn, which changes codes and not time. Other ways to have live tokens
(bfloat16, output layer at listed places only) are timed beside them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import beit
from beit.batch import ImageBatch
from beit.data.augment import prepare
from beit.data.loader import LoaderSettings, training_batches
from beit.data.sources import open_source
from beit.engine.protocol import StepContext, StepOutput
from beit.recipes.build import (
    choose_device,
    choose_precision,
    encoder_config_of,
    mask_plan,
    masked_image_model,
    tokenizer_config,
    view_settings,
)
from beit.tasks.pretrain import PretrainTask, VisualTokens
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.reading import TokenReader, agreement
from provenance import provenance

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Time every size and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", required=True, help="what `beit pretrain --data` takes")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"])
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of steps that are timed")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = choose_device(options.device)
    rows = [measured(size, options, device) for size in options.sizes]
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / f"bank-{device.type}.json"
    record = {**provenance(), "data": Path(options.data).name, "rows": rows}
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(target)


def measured(size: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One size: equal losses, then the ratio of live to banked steps, pair by pair."""
    recipe = beit.recipe(size, {"encoder.drop_path": 0.0})
    torch.manual_seed(0)
    vae = DiscreteVAE(tokenizer_config(recipe.tokenizer.model)).to(device).eval()
    vae.requires_grad_(False)
    model = masked_image_model(recipe, vae.vocabulary).to(device)
    grid, stride = encoder_config_of(recipe.encoder).grid, vae.config.stride
    view = (grid[0] * stride, grid[1] * stride)
    views = view_settings(recipe.views, patch_view=recipe.encoder.image_size, token_view=view)
    source = open_source(options.data, "train")
    loader = LoaderSettings(options.batch)
    live = next(training_batches(source, views, mask_plan(recipe), loader, 0)).to(device)
    ready = prepare(live)
    assert ready.token_view is not None and ready.masks is not None
    exact, cheap = TokenReader(vae), TokenReader(vae, "bfloat16")
    codes = exact.codes(ready.token_view)
    banked = replace(live, token_view=None, codes=codes)
    context = StepContext(0, 0, 1, range(options.batch), 0)
    sides = {
        "live": (PretrainTask(model, VisualTokens(exact)), live),
        "live, listed places": (PretrainTask(model, VisualTokens(exact, listed_only=True)), live),
        "live, bfloat16": (PretrainTask(model, VisualTokens(cheap)), live),
        "live, bfloat16, listed places": (
            PretrainTask(model, VisualTokens(cheap, listed_only=True)),
            live,
        ),
        "banked": (PretrainTask(model, VisualTokens(exact)), banked),
    }
    losses = {name: loss_of(*sides[name], context) for name in ("live", "banked")}
    assert torch.equal(losses["live"], losses["banked"]), losses
    precision = choose_precision("auto", device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):  # the first warms up
        for name, (task, batch) in sides.items():
            taken = timed(step(task, batch, context, optimiser, precision), device)
            seconds[name] += [taken] if turn else []
    found = agreement(cheap.codes(ready.token_view), codes)
    row = {
        "size": size,
        "batch": options.batch,
        "precision": precision,
        "equal codes in bfloat16": round(found.share, 5),
        "sides": {name: summary(times, seconds["live"]) for name, times in seconds.items()},
    }
    print(json.dumps(row, indent=1))
    return row


def loss_of(task: PretrainTask, batch: ImageBatch, context: StepContext) -> Tensor:
    """The loss in float32."""
    with torch.no_grad():
        output: StepOutput = task(prepare(batch), context)
    return output.loss


def step(
    task: PretrainTask,
    batch: ImageBatch,
    context: StepContext,
    optimiser: torch.optim.Optimizer,
    precision: str,
) -> Callable[[], None]:
    """A whole step, to be called."""
    kind = next(task.parameters()).device.type

    def once() -> None:
        optimiser.zero_grad()
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = task(prepare(batch), context).loss
        loss.backward()
        optimiser.step()

    return once


def timed(call: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call, the device's work included."""
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def summary(times: list[float], live: list[float]) -> dict[str, Any]:
    """Median time, and median and quartiles of the gain over live tokens, pair by pair."""
    ratios = [theirs / ours for theirs, ours in zip(live, times, strict=True)]
    spread = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "milliseconds": round(1000 * statistics.median(times), 2),
        "gain": round(statistics.median(ratios), 3),
        "quartiles": [round(spread[0], 3), round(spread[2], 3)],
    }


if __name__ == "__main__":
    main()
