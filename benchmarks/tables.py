"""Records of `experiments.py` as Markdown: python benchmarks/tables.py results/X.json."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beit.evaluation.spread import spread
from beit.report.tables import Table, markdown_table, spread_cell

COLUMNS: dict[str, tuple[str, float, int]] = {  # title -> (validation metric, scale, digits)
    "MSE, hard codes": ("mse_hard", 1, 5),
    "soft − hard": ("mse_gap", 1, 5),
    "perplexity": ("perplexity", 1, 0),
    "of the vocabulary, %": ("perplexity_share", 100, 1),
    "codes used, %": ("used_share", 100, 1),
    "H(q), nats": ("posterior_entropy", 1, 2),
    "KL(q̄ ‖ u), nats": ("kl_marginal", 1, 3),
    "bound, bits/dim": ("bits_per_dimension", 1, 3),
}


def main(files: Sequence[str]) -> None:
    """Print one table a file, with where its numbers come from."""
    for file in files:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
        make = fine_tuning_table if "start" in record["rows"][0] else table
        print(markdown_table(make(record["rows"])))
        machine = record["machine"]
        print(
            f"\n`{record['command']}`, commit {record['commit']}, {record['date']}, "
            f"{machine['processor']}, {machine['threads']} thread(s), {machine['device']}.\n"
        )


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a variant; mean ± standard deviation where there are several seeds."""
    variants: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        variants.setdefault(row["variant"], []).append(row)
    lines = [
        [
            name,
            str(group[0]["steps"]),
            str(len(group)),
            *(_cell(group, *c) for c in COLUMNS.values()),
        ]
        for name, group in variants.items()
    ]
    return Table(["variant", "steps", "seeds", *COLUMNS], lines)


def fine_tuning_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line a trial and start: the last model's metric over seeds, in percent."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["trial"], row["start"]), []).append(row)
    metric = "miou" if "miou" in rows[0]["validation"] else "top1"
    splits = ["validation", "test"] if "test" in rows[0] else ["validation"]
    lines = [
        [
            *(trial, start, str(group[0]["steps"]), str(len(group))),
            *(_percent(group, split, metric) for split in splits),
        ]
        for (trial, start), group in groups.items()
    ]
    return Table(["trial", "start", "steps", "seeds", *(f"{metric}, {s}" for s in splits)], lines)


def _percent(group: Sequence[dict[str, Any]], split: str, metric: str) -> str:
    values = spread([row[split][metric] for row in group])
    return spread_cell(values.mean, values.deviation, digits=1, scale=100)


def _cell(group: Sequence[dict[str, Any]], metric: str, scale: float, digits: int) -> str:
    values = spread([row["validation"][metric] for row in group])
    return spread_cell(values.mean, values.deviation, digits=digits, scale=scale)


if __name__ == "__main__":
    main(sys.argv[1:])
