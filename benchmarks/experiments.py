"""Evidence: named experiments, run through the public interface, recorded as JSON.

    python benchmarks/experiments.py tokenizer-balance --data imagenette-160 --runs runs/evidence

Each experiment is a list of variants of a recipe; each variant runs once a seed. The record says
the command, the commit, the machine and the seeds, and keeps every number that the run reported.
A run that is already finished is not repeated, so a broken-off experiment goes on where it was.
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


@dataclass(frozen=True)
class Variant:
    """A recipe with some fields changed, by dotted name."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "tiny"
    seeds: Sequence[int] = (0,)


SHORT = {"tokenizer.optim.steps": 800, "tokenizer.optim.warmup_steps": 40}


def tokenizer(**changes: Any) -> dict[str, Any]:
    """Changes to the tokenizer of a recipe; a double underscore stands for a dot."""
    return SHORT | {f"tokenizer.{name.replace('__', '.')}": v for name, v in changes.items()}


TOKENIZERS: dict[str, list[Variant]] = {
    "tokenizer-found": [Variant("found", tokenizer(), seeds=(0, 1, 2))],
    "tokenizer-balance": [
        Variant(f"balance {weight}", tokenizer(relaxation__marginal_weight=weight))
        for weight in (0.0, 0.1)  # 0.3 is the one found
    ],
    "tokenizer-changes": [
        Variant("KL weight 6.6", tokenizer(relaxation__kl_weight=6.6)),
        Variant("rate 1e-3", tokenizer(optim__lr=1e-3, optim__min_lr=2e-5)),
        Variant("separate decoder codes", tokenizer(model__decoder_input="separate")),
        Variant("linear logits", tokenizer(model__head="linear", model__decoder_input="separate")),
        Variant("logit-Laplace", tokenizer(model__likelihood="logit-laplace")),
        Variant("1x1 last convolution", tokenizer(model__output_kernel=1)),
        Variant("straight-through, last fifth", tokenizer(relaxation__straight_through=0.2)),
    ],
    "tokenizer-vocabulary": [
        Variant("1024 codes", tokenizer(model__vocabulary=1024)),
        Variant(
            "4096 codes, half the steps",
            tokenizer(model__vocabulary=4096, optim__steps=400, optim__warmup_steps=20),
        ),
        Variant(
            "8192 codes, a quarter of the steps",
            tokenizer(model__vocabulary=8192, optim__steps=200, optim__warmup_steps=10),
        ),
    ],
}


def main() -> None:
    """Run one experiment and write its record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("experiment", choices=sorted(TOKENIZERS))
    parser.add_argument("--data", required=True, help="what `beit tokenizer --data` takes")
    parser.add_argument("--runs", type=Path, required=True, help="where the run folders go")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the record goes")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / f"{options.experiment}.json"
    record = {**provenance(), "data": Path(options.data).name, "rows": []}
    for variant in TOKENIZERS[options.experiment]:
        for seed in variant.seeds:
            row = run(options.experiment, variant, seed, options.data, options.runs)
            record["rows"].append(row)
            target.write_text(json.dumps(record, indent=1) + "\n")  # also if it is broken off
    print(target)


def run(experiment: str, variant: Variant, seed: int, data: str, runs: Path) -> dict[str, Any]:
    """Train one variant, or read what it gave."""
    out = runs / experiment / f"{variant.name.replace(' ', '-')}-seed-{seed}"
    started = time.monotonic()
    if not (out / "result.json").is_file():
        recipe = beit.recipe(variant.recipe, {**variant.changes, "tokenizer.engine.seed": seed})
        beit.train_tokenizer(recipe.tokenizer, data, out, resume=out.exists())
    result = json.loads((out / "result.json").read_text())
    return {
        "variant": variant.name,
        "seed": seed,
        "changes": dict(variant.changes),
        "seconds": round(time.monotonic() - started),
        "steps": result["steps"],
        "vocabulary": result["vocabulary"],
        "validation": result["validation"],
    }


if __name__ == "__main__":
    main()
