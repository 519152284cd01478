"""Does the memory of loader workers grow? Sampled over a long run, anonymous and shared apart.

What a process has to itself is counted whole, what it shares in proportion (PSS). Pages of the
mapped index count as shared files: they are the page cache's and are given back when asked for.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

from beit.data.loading.loader import LoaderSettings, training_batches
from beit.data.sources.opening import open_source
from beit.data.views.draws import MaskPlan
from beit.data.views.views import ViewSettings
from growth_sets import linked_pack
from harness import record

WORKERS, BATCH, SAMPLES = 8, 16, 100
_KINDS = ("Pss", "Pss_Anon", "Pss_File", "Pss_Shmem")


def workers(options: argparse.Namespace) -> Path:
    """Load batches with 8 workers, look at their memory now and then, and write the record."""
    os.environ["BEIT_CACHE"] = str(options.folder / "cache")
    root = options.folder / "pack-many"
    if not root.exists():
        linked_pack(root, options.entries)
    row = growth_of(open_source(str(root), "train"), options.steps)
    print(json.dumps(row, indent=1))
    return record("growth-workers", [row], options.results)


def growth_of(source: Any, steps: int, workers: int = WORKERS) -> dict[str, Any]:
    """Memory of the workers in the middle of a run and at its end."""
    views, masks = ViewSettings(patch_view=(32, 32)), MaskPlan(grid=(8, 8))
    batches = training_batches(source, views, masks, LoaderSettings(BATCH, workers=workers), 0)
    samples: list[dict[str, list[float]]] = []
    began = time.monotonic()
    for step in range(steps):
        next(batches)
        if step % max(1, steps // SAMPLES) == 0 and step:
            samples.append(_sample())
    seconds = time.monotonic() - began
    batches.close()  # type: ignore[attr-defined]
    return {
        "workers": workers,
        "pictures": len(source),
        "batches": steps,
        "batch": BATCH,
        "batches a second": round(steps / seconds, 1),
        **{kind: _grown(samples, kind) for kind in _KINDS},
    }


def _sample() -> dict[str, list[float]]:
    """Megabytes of each worker, by kind."""
    children = sorted(child.pid or 0 for child in multiprocessing.active_children())
    found = [_memory(child) for child in children]
    return {kind: [one[kind] for one in found] for kind in _KINDS}


def _memory(process: int) -> dict[str, float]:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def _grown(samples: list[dict[str, list[float]]], kind: str) -> dict[str, Any]:
    """Medians of a tenth of the samples in the middle and of the last tenth."""
    tenth, middle = max(1, len(samples) // 10), len(samples) // 2
    parts = {"start": samples[:tenth], "middle": samples[middle : middle + tenth]}
    parts["end"] = samples[-tenth:]
    sums = {name: statistics.median(sum(one[kind]) for one in part) for name, part in parts.items()}
    of_each = [
        [statistics.median(column) for column in zip(*(one[kind] for one in part), strict=True)]
        for part in (parts["middle"], parts["end"])
    ]
    ratios = [end / middle for middle, end in zip(*of_each, strict=True) if middle > 0]
    return {
        "megabytes of all": {name: round(total, 1) for name, total in sums.items()},
        "end / middle": round(sums["end"] / max(sums["middle"], 1e-9), 4),
        "end / middle, worst worker": round(max(ratios, default=1.0), 4),
    }
