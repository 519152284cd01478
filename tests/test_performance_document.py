"""docs/performance.md says what its records say."""

import re
import sys
from pathlib import Path

BENCHMARKS = str(Path(__file__).resolve().parents[1] / "benchmarks")
if BENCHMARKS not in sys.path:  # scripts, not a package
    sys.path.append(BENCHMARKS)

from performance_tables import PAGE, page  # noqa: E402


def test_the_tables_are_those_of_the_records() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text


def test_every_table_has_a_record() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- table ", text)) == len(re.findall(r"<!-- end -->", text)) > 5
    assert "Not measured yet" not in text
