"""What pre-training is worth at each number of labels, drawn from the records: docs/labels.png."""

import json
import sys
from pathlib import Path

from beit.evaluation.spread import spread
from beit.report.figures import bars
from downstream import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "labels.png"
TITLE = "Top-1 on 2,000 validation photos of 64 px, three seeds; 200 (1 %) or 400 fine-tuning steps"
GROUPS = {"1%": "1 % of 7,000 labels", "10%": "10 %", "all": "all"}
METHODS = {  # name -> (record, start)
    "from scratch": ("labels", "scratch"),
    "frozen features": ("frozen-10000", "long"),
    "pre-trained": ("labels-10000", "long"),
}


def main(page: Path = PAGE) -> None:
    """Draw means and standard deviations of the last models over the seeds."""
    spreads = [[spread(accuracies(trial, *how)) for how in METHODS.values()] for trial in GROUPS]
    drawing = bars(
        list(GROUPS.values()),
        list(METHODS),
        [[100 * s.mean for s in group] for group in spreads],
        [[100 * (s.deviation or 0.0) for s in group] for group in spreads],
        title=TITLE,
        axis="accuracy, %",
        emphasis="pre-trained",
    )
    page.write_bytes(drawing)


def accuracies(trial: str, name: str, start: str) -> list[float]:
    """Shares, one a seed."""
    record = json.loads((RESULTS / f"downstream-{name}.json").read_text(encoding="utf-8"))
    return [
        row["validation"]["top1"]
        for row in record["rows"]
        if (row["trial"], row["start"]) == (trial, start)
    ]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
