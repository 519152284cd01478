"""The tables of docs/performance.md, made from the records.

    python benchmarks/performance_tables.py

Each table stands between two marks in the page; what is between them is replaced.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aims
from beit.report.tables import Table, markdown_table
from harness import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
Row = dict[str, Any]
_BLOCK = re.compile(r"(<!-- table ([\w,-]+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Replace the tables of the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page with its tables made anew from the records there are."""
    named: set[str] = set()  # records whose commands already stand under a table
    return _BLOCK.sub(lambda found: _replaced(found, named), text)


def _replaced(found: "re.Match[str]", named: set[str]) -> str:
    start, names, kind, end = found.groups()
    files = [RESULTS / f"{name}.json" for name in names.split(",")]
    there = [file for file in files if file.is_file()]
    if not there:
        return f"{start}\nNot measured yet: there is no record `{files[0].name}`.\n\n{end}"
    records = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in there}
    rows = [
        {**row, "record": name, "device": record["machine"]["device"]}
        for name, record in records.items()
        for row in record["rows"]
    ]
    table = markdown_table(TABLES[kind](rows))
    if kind == "summary":
        sources = ["From the records of the tables below."]
    elif named.issuperset(records):
        sources = ["From the records named above."]
    else:
        sources = [source(record, f"{name}.json") for name, record in records.items()]
        named.update(records)
    return f"{start}\n{table}\n\n{'  '.join(dict.fromkeys(sources))}\n\n{end}"


def source(record: Row, name: str) -> str:
    """Where numbers come from."""
    machine, versions = record["machine"], record["versions"]
    where = f"{machine['processor']}, {machine['threads']} thread(s), {machine['device']}"
    return (
        f"`{record['command']}`, commit {record['commit']}, {record['date']}, {where}, "
        f"torch {versions['torch']}; `benchmarks/results/{name}`."
    )


def summary(rows: list[Row]) -> Table:
    """What has an aim, on a CPU and on a GPU side by side."""
    cpu = [row for row in rows if row["device"] == "cpu"]
    gpu = [row for row in rows if row["device"] != "cpu"]
    lines = []
    for name, wanted in aims.RATIOS.items():
        found = [_all(side, "ratios", name, "median") for side in (cpu, gpu)]
        lines.append([f"{name}, times", *_beside(found, wanted, "{:.2f}")])
    for name, wanted in aims.SHARES_OF_PEAK.items():
        found = [_all(side, "sides", name, "share of peak") for side in (cpu, gpu)]
        lines.append([f"{name}, share of the peak", *_beside(found, wanted, "{:.0%}")])
    return Table(["", "two CPU cores", "aim", "one H200", "aim"], lines)


def _all(rows: list[Row], group: str, name: str, figure: str) -> list[float]:
    return sorted(row[group][name][figure] for row in rows if name in row[group])


def _beside(found: list[list[float]], wanted: tuple[float, float], form: str) -> list[str]:
    cells = []
    for figures, aim in zip(found, wanted, strict=True):
        told = list(dict.fromkeys(form.format(figure) for figure in figures))
        cells += [" to ".join(told[:1] + told[1:][-1:]) or "not measured", form.format(aim)]
    return cells


def steps(rows: list[Row]) -> Table:
    """Times, rates and shares of the peak of every side; "in" names the comparison."""
    header = ["size", "in", "step", "ms", "images/s", "GFLOP an image", "share of the peak, %"]
    return Table(
        header,
        [
            [
                row["size"],
                row["record"].split("-")[1],
                name,
                f"{side['milliseconds']:,.0f}",
                f"{side['images a second']:.2f}",
                f"{side['GFLOP an image']:.1f}",
                f"{100 * side['share of peak']:.0f}",
            ]
            for row in rows
            for name, side in row["sides"].items()
        ],
    )


def ratios(rows: list[Row]) -> Table:
    """Ratios of step times with their quartiles and aims."""
    header = ["size", "batch", "theirs / ours", "ratio", "quartiles", "of the fastest", "aim"]
    return Table(
        header,
        [
            [
                row["size"],
                str(row["batch"]),
                name,
                f"{ratio['median']:.2f}",
                _quartiles(ratio),
                f"{ratio['fastest']:.2f}" if "fastest" in ratio else "–",
                "–" if ratio["aim"] is None else f"{ratio['aim']:.2f}",
            ]
            for row in rows
            for name, ratio in row["ratios"].items()
        ],
    )


def ideas(rows: list[Row]) -> Table:
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
            for row in rows
        ],
    )


def _quartiles(ratio: Row) -> str:
    return f"{ratio['low']:.2f} to {ratio['high']:.2f}"


def opening(rows: list[Row]) -> Table:
    """Ten million entries against ten thousand."""
    header = ["layout", "entries", "open_source, ms", "from launch to open, ratio", "quartiles"]
    return Table(
        header,
        [
            [
                row["layout"],
                " / ".join(f"{row['pictures'][k]:,}" for k in ("many", "few")),
                " / ".join(
                    f"{1000 * row['seconds of open_source'][k]:.1f}" for k in ("many", "few")
                ),
                f"{row['ratio, launch to open']['median']:.2f}",
                _quartiles(row["ratio, launch to open"]),
            ]
            for row in rows
        ],
    )


def batch(rows: list[Row]) -> Table:
    """Time a picture by batch."""
    sizes = list(rows[0]["milliseconds a picture"])
    header = ["size", *(f"ms a picture, batch {size}" for size in sizes), "exponent"]
    return Table(
        header,
        [
            [
                row["size"],
                *(f"{row['milliseconds a picture'][size]:.1f}" for size in sizes),
                f"{row['exponent']:.2f}",
            ]
            for row in rows
        ],
    )


def memory(rows: list[Row]) -> Table:
    """What autograd keeps of a picture."""
    header = ["size", "preset", "MB a picture", "of the figure counted"]
    return Table(
        header,
        [
            [
                *(row["size"], row["preset"]),
                f"{row['megabytes a picture']:.1f}",
                f"{row['of the limit']:.2f}",
            ]
            for row in rows
        ],
    )


def inputs(rows: list[Row]) -> Table:
    """Pictures a second on one core."""
    header = ["side", "ms a picture", "pictures/s", "gain", "quartiles", "aim"]
    return Table(
        header,
        [
            [
                row["side"],
                f"{row['milliseconds a picture']:.2f}",
                str(row["pictures a second"]),
                f"{row['gain']['median']:.2f}" if "gain" in row else "1",
                _quartiles(row["gain"]) if "gain" in row else "–",
                f"{row['goal']:.0f}" if row.get("goal") else "–",
            ]
            for row in rows
        ],
    )


def stages(rows: list[Row]) -> Table:
    """Where our time goes, a picture."""
    found = [row for row in rows if "milliseconds by stage" in row]
    names = list(dict.fromkeys(name for row in found for name in row["milliseconds by stage"]))
    return Table(
        ["ms a picture", *(row["side"] for row in found)],
        [
            [name, *(f"{row['milliseconds by stage'].get(name, 0):.3f}" for row in found)]
            for name in names
        ],
    )


def profile(rows: list[Row]) -> Table:
    """Shares of a step's time."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["shares"]))
    return Table(
        ["share of the time, %", *(f"{row['size']}, batch {row['batch']}" for row in rows)],
        [[kind, *(f"{100 * row['shares'].get(kind, 0):.1f}" for row in rows)] for kind in kinds],
    )


TABLES: dict[str, Callable[[list[Row]], Table]] = {
    "summary": summary,
    "steps": steps,
    "ratios": ratios,
    "ideas": ideas,
    "opening": opening,
    "batch": batch,
    "memory": memory,
    "inputs": inputs,
    "stages": stages,
    "profile": profile,
}


if __name__ == "__main__":
    main()
