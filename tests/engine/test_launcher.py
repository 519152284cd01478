import os
from pathlib import Path

import pytest

from beit.engine.launcher import register_rank
from beit.engine.signals import LAUNCHED


def test_a_rank_is_registered_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal may have the launcher look at any instant, also just before the file is there."""
    seen: list[list[Path]] = []
    replace = os.replace

    def looking(source: Path, target: Path) -> None:
        seen.append(list(tmp_path.glob("*.pid")))
        replace(source, target)

    monkeypatch.setenv(LAUNCHED, str(tmp_path))
    monkeypatch.setattr(os, "replace", looking)
    register_rank(3)
    assert seen == [[]] and os.listdir(tmp_path) == ["3.pid"]
    assert (tmp_path / "3.pid").read_text() == str(os.getpid())
