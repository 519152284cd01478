"""Run every benchmark that this machine can, one after the other, and make the tables anew.

    python benchmarks/everything.py [--data PICTURES]

Nothing else should run on the machine meanwhile. What fails is told at the end; the rest goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


def main() -> int:
    """Run them all; 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", help="photographs (a folder or a dataset), for the input path")
    options = parser.parse_args()
    if options.data is None:
        print("without --data (photographs) the input path is left out", file=sys.stderr)
    failed = [" ".join(words) for words in commands(options.data) if not done(words)]
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return bool(failed)


def commands(data: str | None) -> list[list[str]]:
    """Scripts with their arguments: larger models and batches where there is a GPU."""
    gpu = torch.cuda.is_available()
    sizes = ["small", "base", "large"] if gpu else ["base"]
    shape = ["--sizes", *sizes, "--batch", "256" if gpu else "8", "--rounds", "20" if gpu else "5"]
    pictures = [["input_path.py", "--data", data, "--enlarge", "500", "375"]] if data else []
    return [
        *(["step.py", what, *shape] for what in ("live", "given", "classifier")),
        ["ideas.py", *shape],
        ["profile_step.py", *shape],
        ["attention.py"],
        *pictures,
        *(["growth.py", part] for part in ("opening", "workers", "batch", "memory", "processes")),
        ["performance_tables.py"],
    ]


def done(words: list[str]) -> bool:
    """Run a script; whether it went well."""
    print("python benchmarks/" + " ".join(words), flush=True)
    return (
        subprocess.run([sys.executable, HERE / words[0], *words[1:]], check=False).returncode == 0
    )


if __name__ == "__main__":
    sys.exit(main())
