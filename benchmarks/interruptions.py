"""Kill a run with SIGKILL again and again, resume it, and compare its end with an undisturbed one.

    python benchmarks/interruptions.py --data imagenette-160 --runs runs/kill --kills 5

Both runs train a tokenizer and pre-train on it (recipe `tiny`, shortened). The kills come at random
moments of the whole run, so some fall into a save, an evaluation or the start.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments import RESULTS
from provenance import provenance

STEPS = 40
SHORTENED = [
    *("--tokenizer.optim.steps", str(STEPS), "--tokenizer.optim.warmup_steps", "5"),
    *("--optim.steps", str(STEPS), "--optim.warmup_steps", "5", "--engine.save_every", "10"),
    *("--tokenizer.engine.save_every", "10", "--engine.evaluate_every", "20"),
    *("--tokenizer.engine.evaluate_every", "20"),
]
FILES = ("model.safetensors", "tokenizer/model.safetensors")


def main() -> None:
    """Run twice, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    started = time.monotonic()
    finish(options.data, options.runs / "undisturbed")
    seconds = time.monotonic() - started
    moments = kill_often(
        options.data, options.runs / "killed", options.kills, seconds, options.seed
    )
    record = {
        **provenance(),
        "data": Path(options.data).name,
        "kills_after_seconds": moments,
        "undisturbed_seconds": round(seconds),
        "sha256": {
            run: {file: sha256(options.runs / run / file) for file in FILES}
            for run in ("undisturbed", "killed")
        },
        "rows_once": {
            run: steps_once(options.runs / run / "metrics.jsonl")
            for run in ("undisturbed", "killed")
        },
    }
    record["equal"] = record["sha256"]["undisturbed"] == record["sha256"]["killed"]
    target = options.results / "interruptions.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    sys.exit(0 if record["equal"] and all(record["rows_once"].values()) else 1)


def start(data: str, out: Path) -> subprocess.Popen[bytes]:
    """Begin or continue a run."""
    command = ["pretrain", "tiny", "--data", data, "--out", str(out), "--resume", *SHORTENED]
    return subprocess.Popen([sys.executable, "-m", "beit", *command])


def finish(data: str, out: Path) -> None:
    """Let a run come to its end."""
    if start(data, out).wait() != 0:
        raise SystemExit(f"the run in {out} failed")


def kill_often(data: str, out: Path, kills: int, seconds: float, seed: int) -> list[float]:
    """Kill a run so many times, then let it finish; the moments, seconds after each start."""
    draws = random.Random(seed)
    moments: list[float] = []
    while len(moments) < kills:
        process = start(data, out)
        wait = draws.uniform(0.05, 0.6) * seconds
        try:
            if process.wait(timeout=wait) == 0:
                break  # it finished before the kill
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            moments.append(round(wait, 1))
    finish(data, out)
    return moments


def sha256(file: Path) -> str:
    """The hash of a file."""
    from beit.files import sha256_of

    return sha256_of(file)


def steps_once(file: Path) -> bool:
    """Whether the log holds each training step exactly once, in order."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    steps = [row["step"] for row in rows if row["split"] == "train"]
    return steps == list(range(1, STEPS + 1))


if __name__ == "__main__":
    main()
