"""The helper that watches a GPU, without a GPU."""

import warnings

import pytest
import torch

from cuda_sync import never_asked


class Waited(Exception):
    pass


def test_the_mode_is_the_callers_again_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str | int] = [1]

    def put(mode: str | int) -> None:
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", put)
    with pytest.raises(Waited), never_asked():
        assert modes[-1] == "error"
        raise Waited
    assert modes == [1, "error", 1]
