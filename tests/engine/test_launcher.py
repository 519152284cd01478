import os
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from beit.engine import launcher
from beit.engine.launcher import LEFT_ALONE, RankError, register_rank
from beit.engine.signals import LAUNCHED
from beit.errors import UserError


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


def test_ranks_share_the_threads_of_the_cores_that_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 4, 5, 6}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with launcher._environment(2, str(tmp_path)):
        assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in os.environ


def explained(*statuses: int) -> tuple[Exception, bool]:
    """What the launcher makes of ranks that left with these statuses and told it nothing.

    The error, and whether starting them again would end the same way.
    """
    failures = [ProcessFailure(n, 100 + n, status, "") for n, status in enumerate(statuses)]
    return launcher._explained(failures, len(failures))


def test_a_rank_that_told_the_user_itself_is_the_users_mistake() -> None:
    for statuses in ((2, 2), (1, 2), (LEFT_ALONE, 2)):
        error, lasting = explained(*statuses)
        assert isinstance(error, UserError) and "the reason above" in str(error) and lasting
    for statuses in ((1, LEFT_ALONE), (2, -9)):
        error, lasting = explained(*statuses)
        assert isinstance(error, RankError) and not lasting
