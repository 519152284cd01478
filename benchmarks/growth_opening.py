"""Does opening depend on how many pictures there are? A fresh process each time, in turns."""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from growth_sets import A_FOLDER, in_folders, linked_folder, linked_pack, linked_tars
from harness import record, times_faster

FEW = 10_000

# What a process does that opens a set and takes a batch; it tells seconds since it was launched.
PROBE = """
import json, sys, time
launched = float(sys.argv[2])
def since(): return time.monotonic() - launched
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
from beit.data.sources.opening import open_source
told = {"imported": since()}
before = anonymous(), time.monotonic()
source = open_source(sys.argv[1], "train")
facts = len(source), len(source.classes), source.label(0), source.identity(len(source) - 1)
told |= {"open_source": time.monotonic() - before[1], "opened": since()}
told |= {"pictures": facts[0], "megabytes": anonymous() - before[0]}
from beit.data.loading.loader import LoaderSettings, training_batches
from beit.data.views.views import ViewSettings
began = time.monotonic()
views = ViewSettings(patch_view=(32, 32))
batch = next(training_batches(source, views, None, LoaderSettings(32), 0))
told |= {"first_batch": time.monotonic() - began, "whole": since()}
print(json.dumps(told))
"""


def opening(options: argparse.Namespace) -> Path:
    """Time all layouts and write the record."""
    os.environ["BEIT_CACHE"] = str(options.folder / "cache")
    for layout in ("folder", "same folders", "pack", "tar"):
        if options.layouts is None or layout in options.layouts:
            row = _compared(layout, options)
            made = record(f"growth-opening-{row['layout']}", [row], options.results)
    return made


def _sets(layout: str, many: int) -> tuple[Callable[[Path], Path], Callable[[Path], Path]]:
    """What makes the small set and the large one."""
    return {
        "folder": (in_folders(FEW), in_folders(many)),
        # As many folders to look at on both sides, with fewer pictures in each.
        "same folders": (_same_folders(many), in_folders(many)),
        "pack": (lambda root: linked_pack(root, FEW), lambda root: linked_pack(root, many)),
        "tar": (lambda root: linked_tars(root, FEW), lambda root: linked_tars(root, many)),
    }[layout]


def _same_folders(many: int) -> Callable[[Path], Path]:
    folders = max(1, many // A_FOLDER)
    return lambda root: linked_folder(root, folders, max(1, FEW // folders))


def _compared(layout: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make both sets, index them, and open them in turns."""
    make_few, make_many = _sets(layout, options.entries)
    name = layout.replace(" ", "-")
    many_name = "folder" if layout == "same folders" else name
    roots = [options.folder / f"{name}-few", options.folder / f"{many_name}-many"]
    kept = any(root.exists() for root in roots)  # from another time, and so their indices
    few, many = _made(roots[0], make_few), _made(roots[1], make_many)
    indexing = {"few": launched(few), "many": launched(many)}
    runs: dict[str, list[dict[str, float]]] = {"few": [], "many": []}
    for turn in range(options.rounds):
        sides = [("few", few), ("many", many)]
        for side, where in sides if turn % 2 == 0 else reversed(sides):
            runs[side].append(launched(where))
    if not options.keep:
        shutil.rmtree(few)
        if not (layout == "folder" and "same folders" in (options.layouts or ["same folders"])):
            shutil.rmtree(many)
    row = {"layout": name} | summary(runs)
    if not kept:
        row["seconds of the first indexing"] = {
            side: round(told["open_source"], 2) for side, told in indexing.items()
        }
    print(json.dumps(row, indent=1), flush=True)
    return row


def _made(root: Path, make: Callable[[Path], Path]) -> Path:
    if not root.exists():
        began = time.monotonic()
        unfinished = root.with_name(f"{root.name}-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished).rename(root)
        print(f"{root.name} made in {time.monotonic() - began:.0f} s", flush=True)
    return root


def launched(where: Path) -> dict[str, float]:
    """What a fresh process tells of opening a set."""
    words = [sys.executable, "-c", PROBE, str(where), str(time.monotonic())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of both sides, and the ratio of the large set to the small one, pair by pair."""
    few, many = runs["few"], runs["many"]

    def of(side: list[dict[str, float]], fact: str) -> list[float]:
        return [told[fact] for told in side]

    def median(fact: str) -> dict[str, float]:
        return {
            name: round(statistics.median(of(side, fact)), 4)
            for name, side in (("few", few), ("many", many))
        }

    return {
        "pictures": {"few": int(few[0]["pictures"]), "many": int(many[0]["pictures"])},
        "seconds from launch to open": median("opened"),
        "seconds from launch to the first batch": median("whole"),
        "seconds of open_source": median("open_source"),
        "seconds of the first batch": median("first_batch"),
        "megabytes that opening keeps": median("megabytes"),
        "ratio, launch to open": times_faster(of(many, "opened"), of(few, "opened")),
        "ratio, launch to first batch": times_faster(of(many, "whole"), of(few, "whole")),
    }
