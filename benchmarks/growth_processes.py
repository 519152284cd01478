"""Are two processes nearly twice as fast as one? Told beside what the cores allow at all."""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import beit
from beit.commands.assembly.build import choose_precision
from growth_sets import linked_folder
from harness import CPU, record, times_faster

SECONDS = 10.0  # of each measurement, warm-up not counted
WARM_UP = 3  # steps
BATCH = 128  # over all processes
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # a thread a process

# Two cores that share their arithmetic units are not two: this tells what they are.
PRODUCT = """
import sys, time, torch
torch.set_num_threads(1)
one = torch.randn(1024, 1024).to(getattr(torch, sys.argv[2]))
calls, began = 0, time.monotonic()
while (seconds := time.monotonic() - began) < float(sys.argv[1]):
    one @ one
    calls += 1
print(calls / seconds)
"""


def processes(options: argparse.Namespace) -> Path:
    """Time one process and two, on the same global batch."""
    os.environ["BEIT_CACHE"] = str(options.folder / "cache")
    size = (options.sizes or ["tiny"])[0]
    data = options.folder / "pictures"
    if not data.exists():
        linked_folder(data, 10, 400)
    tokenizer = _tokenizer(size, data, options.folder / "tokenizer")
    trained: dict[int, list[float]] = {1: [], 2: []}
    products: dict[int, list[float]] = {1: [], 2: []}
    strangers: list[float] = []
    for turn in range(options.rounds):
        for number in (1, 2) if turn % 2 == 0 else (2, 1):
            products[number].append(_products(number))
            run = options.folder / f"run-{turn}-{number}"
            trained[number].append(_trained((number, BATCH), size, data, tokenizer, run))
            print(number, round(products[number][-1]), round(trained[number][-1], 1), flush=True)
        runs = [options.folder / f"run-{turn}-alone-{name}" for name in "ab"]
        with ThreadPoolExecutor(2) as both:
            rates = both.map(
                lambda run: _trained((1, BATCH // 2), size, data, tokenizer, run), runs
            )
            strangers.append(sum(rates))
        print("two that know nothing of each other", round(strangers[-1], 1), flush=True)
    row = _row(size, trained, products)
    row["two runs that know nothing of each other against one"] = times_faster(
        strangers, trained[1]
    )
    print(json.dumps(row, indent=1))
    return record("growth-processes", [row], options.results)


def _row(
    size: str, trained: dict[int, list[float]], products: dict[int, list[float]]
) -> dict[str, Any]:
    # Rates, not times: what two processes do comes first.
    ours, ceiling = times_faster(trained[2], trained[1]), times_faster(products[2], products[1])
    return {
        "size": size,
        "batch over all processes": BATCH,
        "cores": os.cpu_count(),
        "pictures a second": {
            str(number): round(statistics.median(rates), 1) for number, rates in trained.items()
        },
        "two processes against one": ours,
        "two matrix products at once against one": ceiling,
        "share of what the cores allow": round(ours["median"] / ceiling["median"], 3),
    }


def _products(number: int) -> float:
    """Matrix products a second of some processes together."""
    words = [sys.executable, "-c", PRODUCT, "3", choose_precision("auto", CPU)]
    running = [
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | ALONE)
        for _ in range(number)
    ]
    return sum(float(process.communicate()[0]) for process in running)


def _tokenizer(size: str, data: Path, out: Path) -> Path:
    """A tokenizer that has seen a step."""
    if not out.exists():
        recipe = beit.recipe(size).tokenizer.name
        words = ["tokenizer", recipe, "--optim.steps", "1", "--optim.batch", "8"]
        subprocess.run(_command([*words, "--data", str(data), "--out", str(out)]), check=True)
    return out


def _command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "beit", *words]


def _trained(cut: tuple[int, int], size: str, data: Path, tokenizer: Path, out: Path) -> float:
    """Pictures a second of `beit pretrain`, from the times at which steps were noted."""
    number, batch = cut  # processes, and pictures a step over all of them
    words = ["pretrain", size, "--data", str(data), "--tokenizer", str(tokenizer)]
    words += ["--out", str(out), "--processes", str(number)]
    words += ["--optim.batch", str(batch), "--optim.steps", "100000", "--data.workers", "0"]
    words += ["--engine.log_every", "1"]
    with (out.parent / f"{out.name}.log").open("w") as log:
        process = subprocess.Popen(_command(words), stderr=log, stdout=log, env=os.environ | ALONE)
        try:
            began = _noted(out, WARM_UP, process)
            time.sleep(SECONDS)
            ended = _noted(out, began[0] + 1, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    return (ended[0] - began[0]) * batch / (ended[1] - began[1])


def _noted(out: Path, least: int, process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """How many steps are noted, at least so many, and when the last one was."""
    file = out / "metrics.jsonl"
    while process.poll() is None:
        if file.exists():
            before = file.stat().st_mtime
            steps = file.read_text().count('"split": "train"')
            if steps >= least and before == file.stat().st_mtime:
                return steps, before
        time.sleep(0.01)
    raise SystemExit(f"training ended early; see {out}.log")
