"""The tables of docs/performance.md, made from the records.

    python benchmarks/performance_tables.py

Each table stands between two marks in the page; what is between them is replaced.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beit.report.tables import Table, markdown_table
from harness import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
Record = dict[str, Any]
_BLOCK = re.compile(r"(<!-- table ([\w-]+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Replace the tables of the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page with its tables made anew from the records there are."""
    return re.sub(
        r"(<!-- table ([\w-]+) (\w+) -->\n).*?(<!-- end -->)", _replaced, text, flags=re.S
    )


def _replaced(found: "re.Match[str]") -> str:
    start, name, kind, end = found.groups()
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        return f"{start}\nNot measured yet: there is no record `{file.name}`.\n\n{end}"
    record = json.loads(file.read_text(encoding="utf-8"))
    return (
        f"{start}\n{markdown_table(TABLES[kind](record))}\n\n{source(record, file.name)}\n\n{end}"
    )


def source(record: Record, name: str) -> str:
    """Where numbers come from."""
    machine, versions = record["machine"], record["versions"]
    where = f"{machine['processor']}, {machine['threads']} thread(s), {machine['device']}"
    return (
        f"`{record['command']}`, commit {record['commit']}, {record['date']}, {where}, "
        f"torch {versions['torch']}; `benchmarks/results/{name}`."
    )


def steps(record: Record) -> Table:
    """Times, rates and shares of the peak of every side."""
    header = ["size", "step", "ms", "images/s", "GFLOP an image", "share of the peak, %"]
    return Table(
        header,
        [
            [
                row["size"],
                name,
                f"{side['milliseconds']:,.0f}",
                f"{side['images a second']:.2f}",
                f"{side['GFLOP an image']:.1f}",
                f"{100 * side['share of peak']:.0f}",
            ]
            for row in record["rows"]
            for name, side in row["sides"].items()
        ],
    )


def ratios(record: Record) -> Table:
    """Ratios of step times with their quartiles and aims."""
    header = ["size", "batch", "theirs / ours", "ratio", "quartiles", "aim"]
    return Table(
        header,
        [
            [
                row["size"],
                str(row["batch"]),
                name,
                f"{ratio['median']:.2f}",
                _quartiles(ratio),
                "–" if ratio["aim"] is None else f"{ratio['aim']:.2f}",
            ]
            for row in record["rows"]
            for name, ratio in row["ratios"].items()
        ],
    )


def ideas(record: Record) -> Table:
    """Predictions beside outcomes."""
    header = ["idea", "of", "predicted", "measured", "quartiles"]
    return Table(
        header,
        [
            [
                row["idea"],
                f"{row['size']} {row['of']}",
                row["predicted"],
                f"{row['gain']['median']:.2f}",
                _quartiles(row["gain"]),
            ]
            for row in record["rows"]
        ],
    )


def _quartiles(ratio: Record) -> str:
    return f"{ratio['low']:.2f} to {ratio['high']:.2f}"


TABLES: dict[str, Callable[[Record], Table]] = {"steps": steps, "ratios": ratios, "ideas": ideas}


if __name__ == "__main__":
    main()
