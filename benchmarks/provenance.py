"""Where and from what a number comes."""

import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

# What the benchmarks themselves write is no change of what is measured.
CHANGED = ("diff", "HEAD", "--", ":/", ":(top,exclude)benchmarks/results", ":(top,exclude)docs")


def provenance() -> dict[str, Any]:
    """Command, commit (with a + where code was changed since), day, machine and versions."""
    script = Path(sys.argv[0]).name
    # Of a path, alone or behind NAME=, the last part: the rest is the machine's own.
    words = [re.sub(r"[^=]*/(?=[^/])", "", word) for word in sys.argv[1:]]
    return {
        "command": " ".join(["python", f"benchmarks/{script}", *words]),
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+" if _git(*CHANGED) else ""),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _processor() -> str:
    """The family and its widest arithmetic, which times depend on most."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    widest = "AVX512-bf16" if "avx512_bf16" in flags else torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} with {widest}"
