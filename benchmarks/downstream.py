r"""Evidence that pre-training helps: fine-tunings from different starts, recorded as JSON.

    python benchmarks/downstream.py labels --data imagenette-160 --runs runs/evidence \
        --start short=runs/tiny --start long=runs/tiny-long

Each experiment is a list of fine-tunings, each done from each start and with each seed, at the same
budget; the seed draws labels, order, crops and fresh weights. Every run is one `beit classify` or
`beit segment`. A run that is finished is not repeated, so a broken-off experiment goes on where it
was, and the record grows with each run.

A start may say which pre-training it is of, as in `--start short/1=RUN`, and name a run of the same
fine-tuning seed, as in `--start classifier=RUNS/resolution/160-px-scratch-seed-{seed}`. `--record`
writes elsewhere than in `downstream-EXPERIMENT.json`, whose older rows would be gone.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import beit
from provenance import provenance

RESULTS = Path(__file__).parent / "results"
SCRATCH = "scratch"
QUICK = {"data.workers": 0, "engine.save_every": 100_000}  # runs of minutes, on a CPU


@dataclass(frozen=True)
class Trial:
    """A fine-tuning, done from several starts."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classify"
    starts: Sequence[str] = (SCRATCH, "short", "long")
    seeds: Sequence[int] = (0, 1, 2)


def labels(amount: str, steps: int, **changes: Any) -> dict[str, Any]:
    """A classification with some of the labels, measured at its end; `__` stands for a dot."""
    more = {name.replace("__", "."): value for name, value in changes.items()}
    return {
        "data.labels": amount,
        "optim.steps": steps,
        "optim.warmup_steps": steps // 10,
        "engine.evaluate_every": steps,
        **more,
    }


def masks(steps: int, **changes: Any) -> dict[str, Any]:
    """A segmentation, measured once, at its end."""
    more = {name.replace("__", "."): value for name, value in changes.items()}
    length = {"optim.steps": steps, "optim.warmup_steps": steps // 20}
    return {**length, "engine.evaluate_every": steps, **more}


def square(pixels: int, rate: float | None = None) -> dict[str, Any]:
    """Square pictures of 16 px patches, at another rate than the recipe's."""
    shape = {"encoder__image_size": (pixels, pixels), "encoder__patch_size": (16, 16)}
    return shape if rate is None else {**shape, "optim__lr": rate}


def wider(pixels: int, steps: int, rate: float) -> dict[str, Any]:
    """All labels at another size than the recipe's."""
    return labels("all", steps, encoder__image_size=(pixels, pixels), optim__lr=rate)


FROM = ("short", "long")
HALF_WAY = ("classifier",)
SHARES = ("1%", "10%", "all")
EXPERIMENTS: dict[str, list[Trial]] = {
    "labels": [
        Trial("10%", labels("10%", 400)),
        Trial("all", labels("all", 400)),
        Trial("1%", labels("1%", 200)),
    ],
    # As long as the recipe says, for larger ones than `tiny` on an accelerator.
    "whole": [Trial(share, {"data.labels": share}) for share in ("all", "10%")],
    # The same labels without fine-tuning: logistic regression on the frozen features.
    "frozen": [Trial(share, {"labels": share}, "probe", FROM) for share in SHARES],
    # From scratch with the work that pre-training cost on top (a step of it is two of fine-tuning
    # in pictures, and 1.4 times the work a picture, by the rates measured).
    "fair": [
        Trial("all", labels("all", 400 + 7000), starts=(SCRATCH,), seeds=(0,)),
        Trial("10%", labels("10%", 400 + 7000), starts=(SCRATCH,), seeds=(0,)),
    ],
    # The same beside the pre-training of 10,000 steps, which cost twice as much.
    "fair-longer": [
        Trial("all", labels("all", 400 + 14000), starts=(SCRATCH,), seeds=(0,)),
        Trial("10%", labels("10%", 400 + 14000), starts=(SCRATCH,), seeds=(0,)),
    ],
    # And the pre-trained ones with more fine-tuning than 400 steps.
    "budget": [
        Trial("all", labels("all", 2000), starts=FROM, seeds=(0,)),
        Trial("10%", labels("10%", 2000), starts=FROM, seeds=(0,)),
    ],
    "choices": [
        Trial("layer decay, mean", labels("10%", 400), starts=FROM),
        Trial("no layer decay", labels("10%", 400, tuning__layer_decay=1.0), starts=FROM),
        Trial("special token", labels("10%", 400, tuning__pool="special"), starts=FROM),
    ],
    # The second half starts from the first's runs: as many gentle steps at the larger size, at the
    # old one, and none at all.
    "resolution": [
        Trial("160 px", labels("all", 200, **square(160)), starts=(SCRATCH,)),
        Trial("160 to 224 px, untrained", labels("all", 1, **square(224, 1e-12)), starts=HALF_WAY),
        Trial("160 to 224 px", labels("all", 60, **square(224, 3e-4)), starts=HALF_WAY),
        Trial("160 to 160 px", labels("all", 60, **square(160, 3e-4)), starts=HALF_WAY),
    ],
    # The same from good classifiers at the recipe's 64 px, in patches of 8.
    "resolution-longer": [
        Trial("64 to 96 px, untrained", wider(96, 1, 1e-12), starts=HALF_WAY),
        Trial("64 to 96 px", wider(96, 200, 3e-4), starts=HALF_WAY),
        Trial("64 to 64 px", wider(64, 200, 3e-4), starts=HALF_WAY),
    ],
    # "middle" is a classifier fine-tuned on imagenette from the short pre-training, "adapted" the
    # short pre-training gone on with on camvid's training pictures, without their masks.
    "camvid": [
        Trial(
            "upernet",
            masks(400, decoder__kind="upernet", decoder__channels=64),
            "segment",
            (SCRATCH, "short", "middle", "long"),
        ),
        Trial("pup", masks(400), "segment", (SCRATCH, "short", "middle", "long")),
        # Groups instead of batches: exact under accumulation, and much slower to learn here.
        Trial(
            "pup, group norm",
            masks(400, decoder__norm="group"),
            "segment",
            (SCRATCH, "short", "middle"),
            seeds=(0,),
        ),
    ],
    # UPerNet with rare classes counting for more, beside the same without.
    "balance": [
        Trial(
            f"upernet, balance {balance}",
            masks(400, decoder__kind="upernet", decoder__channels=64, class_balance=balance),
            "segment",
            (SCRATCH, "short", "middle", "long", "adapted"),
        )
        for balance in (0.5, 0.0)
    ],
    # Each start with a lower rate than the recipe's 3e-3, which is three times pre-training's.
    "camvid-rate": [
        Trial(
            f"upernet, balance 0.5, rate {rate}",
            masks(
                400,
                decoder__kind="upernet",
                decoder__channels=64,
                class_balance=0.5,
                optim__lr=float(rate),
            ),
            "segment",
            (SCRATCH, "short", "adapted"),
            seeds=(0,),
        )
        for rate in ("1e-3", "1.5e-3")
    ],
    # Larger pictures and five times the steps: nearly two hours a run on one core.
    "camvid-longer": [
        Trial(
            "upernet, 128 px, balance 0.5",
            masks(
                2000,
                decoder__kind="upernet",
                decoder__channels=64,
                class_balance=0.5,
                encoder__image_size=(128, 128),
                views__short_side=180,
            ),
            "segment",
            (SCRATCH, "short", "middle", "long"),
            seeds=(0,),
        ),
    ],
}


def main() -> None:
    """Run one experiment and write its record after each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("--data", required=True, help="what `beit classify --data` takes")
    parser.add_argument("--runs", type=Path, required=True, help="where the run folders go")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the record goes")
    parser.add_argument("--recipe", default="tiny", help="of the fine-tunings (tiny)")
    parser.add_argument("--record", metavar="NAME", help="the record's, if not the experiment's")
    parser.add_argument("--start", action="append", default=[], metavar="NAME=CKPT")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the starts, `scratch` is one")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the experiment's own")
    parser.add_argument("--trials", nargs="+", metavar="NAME", help="some of the experiment's")
    options = parser.parse_args()
    starts = {SCRATCH: "none", **dict(pair.split("=", 1) for pair in options.start)}
    starts = {name: init for name, init in starts.items() if name in (options.only or starts)}
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / f"downstream-{options.record or options.experiment}.json"
    about = {"data": Path(options.data).name, "recipe": options.recipe}
    record = {**provenance(), **about, "rows": []}
    trials = [t for t in EXPERIMENTS[options.experiment] if t.name in (options.trials or [t.name])]
    for seed in options.seeds or sorted({seed for trial in trials for seed in trial.seeds}):
        for trial in (trial for trial in trials if options.seeds or seed in trial.seeds):
            for start in (s for s in starts if s.partition("/")[0] in trial.starts):
                row = run(options, trial, start, starts[start].format(seed=seed), seed)
                record["rows"].append(row)
                target.write_text(json.dumps(record, indent=1) + "\n")
                print(trial.name, start, seed, row["validation"], flush=True)


def run(
    options: argparse.Namespace, trial: Trial, start: str, init: str, seed: int
) -> dict[str, Any]:
    """Do one fine-tuning, or read what it gave."""
    name = f"{trial.name}-{start}-seed-{seed}".replace(" ", "-").replace("/", "-")
    out = options.runs / options.experiment / name
    if trial.task == "probe":
        return probed(out, options.data, trial, (start, init), seed)
    quick = QUICK if options.recipe == "tiny" else {}
    changes = {**quick, **trial.changes, "engine.seed": seed}
    if start == SCRATCH:
        # Layer decay is for weights that know something already.
        decay = "tuning.layer_decay" if trial.task == "classify" else "layer_decay"
        changes[decay] = 1.0
    started = time.monotonic()
    if not (out / "result.json").is_file():
        train = beit.classify if trial.task == "classify" else beit.segment
        train(options.recipe, options.data, out, init=init, changes=changes, resume=out.exists())
    result = json.loads((out / "result.json").read_text())
    more = {} if trial.task == "classify" else {"test": tested(out, options.data)}
    return {
        "trial": trial.name,
        "start": start,
        "seed": seed,
        "changes": changes,
        "seconds": round(time.monotonic() - started),
        "steps": result["steps"],
        "validation": result["validation"],
        "best": {name: value for name, value in result["best"].items() if name != "model"},
        **more,
    }


def probed(out: Path, data: str, trial: Trial, start: tuple[str, str], seed: int) -> dict[str, Any]:
    """Measure frozen features, or read what was measured; the block chosen on held-out pictures."""
    file = out / "probe.json"
    if not file.is_file():
        beit.probe(start[1], data, out=out, seed=seed, quiet=True, **trial.changes)
    (method,) = json.loads(file.read_text())["methods"].values()
    return {
        "trial": trial.name,
        "start": start[0],
        "seed": seed,
        "changes": dict(trial.changes),
        "steps": 0,
        "block": method["best_block"],
        "validation": {"top1": method["test"]},
    }


def tested(run: Path, data: str) -> dict[str, Any]:
    """Measure a segmenter on the test split, or read what was measured."""
    file = run / "test.json"
    if not file.is_file():
        beit.evaluate(run, data, split="test", out=str(file), quiet=True)
    found = json.loads(file.read_text())
    return {name: found[name] for name in ("miou", "pixel_accuracy", "iou", "pictures")}


if __name__ == "__main__":
    main()
