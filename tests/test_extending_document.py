"""The programs of docs/extending.md run as they stand there."""

import re
from pathlib import Path

import pytest

from beit import masking
from beit.nn import own_decoder

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
PROGRAMS = dict(
    re.findall(r"\n## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE.read_text(), re.S)
)


def test_the_page_has_a_program_for_each_part() -> None:
    assert len(PROGRAMS) == PAGE.read_text().count("```python") == 9


@pytest.mark.parametrize("title", PROGRAMS)
def test_a_program_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(masking, "MASKERS", dict(masking.MASKERS))
    monkeypatch.setattr(masking, "_CAPACITIES", {})
    monkeypatch.setattr(own_decoder, "_MAKERS", {})
    code = compile(PROGRAMS[title], f"{PAGE.name}: {title}", "exec")
    exec(code, {"__name__": "__main__"})
