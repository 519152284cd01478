"""Kill a run with SIGKILL again and again, resume it, and compare its end with an undisturbed one.

    python benchmarks/interruptions.py --data imagenette-160 --runs runs/kill --kills 5
    python benchmarks/interruptions.py --task segment --data camvid --runs runs/kill-seg --kills 5

Both runs train a tokenizer and pre-train on it, or fine-tune from scratch (recipe `tiny`,
shortened). The kills come at random moments of the whole run, so some fall into a save, an
evaluation or the start.
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
    *("--optim.steps", str(STEPS), "--optim.warmup_steps", "5", "--engine.save_every", "10"),
    *("--engine.evaluate_every", "20"),
]
TOKENIZER = [
    *("--tokenizer.optim.steps", str(STEPS), "--tokenizer.optim.warmup_steps", "5"),
    *("--tokenizer.engine.save_every", "10", "--tokenizer.engine.evaluate_every", "20"),
]
FINE_TUNED = ("model.safetensors", "best/model.safetensors", "evaluation.json", "metrics.jsonl")
FILES = {
    "pretrain": ("model.safetensors", "tokenizer/model.safetensors"),
    "classify": FINE_TUNED,
    "segment": FINE_TUNED,
}


def main() -> None:
    """Run twice, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--task", choices=FILES, default="pretrain")
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    words, started = words_of(options.task, options.data), time.monotonic()
    finish(words, options.runs / "undisturbed")
    seconds = time.monotonic() - started
    moments = kill_often(words, options.runs / "killed", options.kills, seconds, options.seed)
    record = {
        **provenance(),
        "data": Path(options.data).name,
        "kills_after_seconds": moments,
        "undisturbed_seconds": round(seconds),
        "sha256": {
            run: {file: sha256(options.runs / run / file) for file in FILES[options.task]}
            for run in ("undisturbed", "killed")
        },
        "rows_once": {
            run: steps_once(options.runs / run / "metrics.jsonl")
            for run in ("undisturbed", "killed")
        },
    }
    record["equal"] = record["sha256"]["undisturbed"] == record["sha256"]["killed"]
    more = "" if options.task == "pretrain" else f"-{options.task}"
    target = options.results / f"interruptions{more}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    sys.exit(0 if record["equal"] and all(record["rows_once"].values()) else 1)


def words_of(task: str, data: str) -> list[str]:
    """A command, without its folder."""
    own = TOKENIZER if task == "pretrain" else ["--init", "none"]
    return [task, "tiny", "--data", data, "--resume", *SHORTENED, *own]


def start(words: list[str], out: Path) -> subprocess.Popen[bytes]:
    """Begin or continue a run."""
    return subprocess.Popen([sys.executable, "-m", "beit", *words, "--out", str(out)])


def finish(words: list[str], out: Path) -> None:
    """Let a run come to its end."""
    if start(words, out).wait() != 0:
        raise SystemExit(f"the run in {out} failed")


def kill_often(words: list[str], out: Path, kills: int, seconds: float, seed: int) -> list[float]:
    """Kill a run so many times, then let it finish; the moments, seconds after each start."""
    draws = random.Random(seed)
    moments: list[float] = []
    while len(moments) < kills:
        process = start(words, out)
        wait = draws.uniform(0.05, 0.6) * seconds
        try:
            if process.wait(timeout=wait) == 0:
                break  # it finished before the kill
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            moments.append(round(wait, 1))
    finish(words, out)
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
