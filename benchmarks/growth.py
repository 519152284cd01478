"""How cost grows: with the set, with time, with the batch, with the picture, with processes.

    python benchmarks/growth.py opening       # 10,000,000 entries against 10,000; minutes, 4 GB
    python benchmarks/growth.py workers       # memory of 8 loader processes over a long run
    python benchmarks/growth.py batch         # time of a step at batches of 4 to 32
    python benchmarks/growth.py memory        # bytes that autograd keeps a picture
    python benchmarks/growth.py processes     # two processes against one

Each writes `results/growth-NAME.json`.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from growth_memory import memory
from growth_opening import opening
from growth_processes import processes
from growth_steps import batches
from growth_workers import workers
from harness import RESULTS

PARTS: dict[str, Callable[[argparse.Namespace], Path]] = {
    "opening": opening,
    "workers": workers,
    "batch": batches,
    "memory": memory,
    "processes": processes,
}


def main() -> None:
    """Measure one part and write its record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--entries", type=int, default=10_000_000, help="of the large sets")
    parser.add_argument("--layouts", nargs="+", help="folder, same folders, pack, tar")
    parser.add_argument("--rounds", type=int, default=10, help="pairs that are timed")
    parser.add_argument("--sizes", nargs="+", help="of models")
    parser.add_argument("--steps", type=int, default=5000, help="batches that the workers load")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--folder", type=Path, help="for the sets; a temporary one by default")
    parser.add_argument("--keep", action="store_true", help="keep the sets")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.folder or Path(folder)
        options.folder.mkdir(parents=True, exist_ok=True)
        print(PARTS[options.part](options))


if __name__ == "__main__":
    main()
