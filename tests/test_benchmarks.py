"""The benchmarks run from drawn pictures to record, their assertions of equality included.

How long anything takes is not looked at here: other work on the machine must fail no test.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from commands.recipe_runs import beit, pretraining
from oracles.picture_zoo import scene

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = ["--sizes", "digits", "--pixels", "32", "--batch", "2", "--rounds", "1", "--eager"]


def recorded(script: str, words: list[str], results: Path) -> dict[str, Any]:
    """Run a script and read the one record that it makes."""
    command = [sys.executable, str(BENCHMARKS / script), *words, "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = results.glob("*.json")
    record: dict[str, Any] = json.loads(file.read_text())
    assert record["command"].startswith(f"python benchmarks/{script}")
    return record


@pytest.mark.parametrize(
    ("what", "ratios", "peer"),
    [
        ("live", {"reference / ours, live tokens", "reference / ours, banked tokens"}, "reference"),
        ("given", {"transformers / ours, tokens given"}, "transformers"),
        ("classifier", {"timm / ours"}, "timm"),
    ],
)
def test_steps_are_compared_with_their_peers(
    what: str, ratios: set[str], peer: str, tmp_path: Path
) -> None:
    (row,) = recorded("step.py", [what, *SMALL], tmp_path)["rows"]
    assert ratios <= set(row["ratios"]) and all(r["median"] > 0 for r in row["ratios"].values())
    assert row["attention"] == "not our kernels: the kernels are made for CUDA"
    assert row["apart in float32"].keys() == {peer}
    assert row["apart in float32"][peer]["gradient, relative"] < 1e-5
    assert 1e-5 < row["ours in bfloat16 apart from float32"]["gradient, relative"] < 3e-2
    assert row["failed"] == {}
    assert not [name for name in row["sides"] if "compiled" in name]
    assert all(side["share of peak"] > 0 for side in row["sides"].values())


def test_ideas_change_no_gradient(tmp_path: Path) -> None:
    rows = recorded("ideas.py", SMALL, tmp_path)["rows"]
    assert len(rows) == 10 and all(row["predicted"] for row in rows)
    assert all(row.get("gradients apart", 0) < 1e-5 for row in rows)


def test_attention_is_compared_alone(tmp_path: Path) -> None:
    words = [
        "--tokens",
        "17",
        "--in-all",
        "40",
        "--heads",
        "2",
        "--features",
        "16",
        "--rounds",
        "2",
    ]
    (row,) = recorded("attention.py", words, tmp_path)["rows"]
    assert (row["batch"], row["tokens"]) == (2, 17)
    assert set(row["apart from float32"]) == {"ours", "torch's", "written out"}
    for what in ("forward", "forward and backward"):
        assert set(row[what]["ratios"]) == {"torch's / ours", "written out / ours"}


def test_a_step_is_profiled_and_drawn(tmp_path: Path) -> None:
    (row,) = recorded("profile_step.py", SMALL, tmp_path)["rows"]
    assert row["attention"] == "not our kernels: the kernels are made for CUDA"
    assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert row["shares"]["convolutions of the tokenizer"] > row["shares"]["other"]
    (drawing,) = tmp_path.glob("step-profile-*.png")
    with Image.open(drawing) as picture:
        assert picture.size[0] > 1000


def test_the_worth_of_pre_training_is_drawn(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "label_figure.py"), str(tmp_path / "labels.png")]
    subprocess.run(command, check=True)
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.size[0] > 1000


def test_what_a_model_fills_in_is_drawn(tmp_path: Path) -> None:
    outcome = beit(*pretraining(tmp_path / "run"))
    assert outcome.status == 0, outcome.err
    drawn = tmp_path / "filled.png"
    command = [sys.executable, str(BENCHMARKS / "filled_figure.py"), str(tmp_path / "run")]
    subprocess.run([*command, str(drawn)], check=True)
    with Image.open(drawn) as picture:
        assert picture.size[0] > 1000


def test_input_paths_are_compared(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        Image.fromarray(scene(60 + number, 80)).save(tmp_path / "pictures" / f"{number}.jpg")
    words = ["--data", str(tmp_path / "pictures"), "--rounds", "1", "--batch", "2"]
    record = recorded("input_path.py", [*words, "--enlarge", "120", "90"], tmp_path / "results")
    assert record["files"]["sizes (width, height)"] == {"120 x 90": 5}
    rows = {row["side"]: row for row in record["rows"]}
    assert {"reference", "files", "packed", "files, banked", "packed, banked"} <= set(rows)
    assert all(row["pictures a second"] > 0 for row in rows.values())
    assert rows["files"]["goal"] == 4 and rows["packed"]["goal"] == 8
    assert {"decode", "masks", "collate"} <= set(rows["files"]["milliseconds by stage"])


def test_the_growth_of_a_step_is_measured(tmp_path: Path) -> None:
    words = ["batch", "--sizes", "digits", "--rounds", "1", "--device", "cpu"]
    (row,) = recorded("growth.py", words, tmp_path)["rows"]
    assert set(row["milliseconds a picture"]) == {"4", "8", "16", "32"}


def test_the_growth_of_memory_is_counted(tmp_path: Path) -> None:
    words = ["memory", "--sizes", "digits", "--device", "cpu"]
    rows = recorded("growth.py", words, tmp_path)["rows"]
    kept = {row["preset"]: row["megabytes a picture"] for row in rows}
    assert kept["paper"] == pytest.approx(kept["plus"], rel=0.05)  # neither scores nor LayerScale


def test_the_memory_of_loaders_is_sampled(tmp_path: Path) -> None:
    words = ["workers", "--entries", "4000", "--steps", "30"]
    (row,) = recorded("growth.py", words, tmp_path)["rows"]
    assert row["pictures"] == 4000 and row["Pss"]["end / middle"] > 0


def test_opening_is_timed_in_fresh_processes(tmp_path: Path) -> None:
    words = ["opening", "--layouts", "tar", "--entries", "12000", "--rounds", "1"]
    (row,) = recorded("growth.py", words, tmp_path)["rows"]
    assert row["pictures"]["many"] / row["pictures"]["few"] == 1.2
    assert row["ratio, launch to open"]["median"] > 0
