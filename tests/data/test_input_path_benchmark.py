"""`benchmarks/input_path.py` runs from pictures to record, its assertions of equality included."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from oracles.picture_zoo import scene

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "input_path.py"


def test_a_few_pictures_are_timed_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        Image.fromarray(scene(60 + number, 80)).save(tmp_path / "pictures" / f"{number}.jpg")
    words = ["--data", str(tmp_path / "pictures"), "--results", str(tmp_path / "results")]
    words += ["--rounds", "1", "--batch", "2", "--enlarge", "120", "90"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results" / "input-path.json").read_text())
    assert record["files"]["sizes (width, height)"] == {"120 x 90": 5}
    rows = {row["side"]: row for row in record["rows"]}
    assert {"reference", "files", "packed", "files, banked", "packed, banked"} <= set(rows)
    assert all(row["pictures a second"] > 0 for row in rows.values())
    assert rows["files"]["goal"] == 4 and rows["packed"]["goal"] == 8
    assert {"decode", "masks", "collate"} <= set(rows["files"]["milliseconds by stage"])
