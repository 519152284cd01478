"""Shared by all tests: one thread a process, a private cache, real data when it is there."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def imagenette() -> Path:
    folder = SHARED_DATA / "imagenette-160"
    if not folder.is_dir():
        pytest.skip("imagenette-160 is not on this machine")
    return folder


@pytest.fixture(scope="session")
def camvid() -> Path:
    folder = SHARED_DATA / "camvid"
    if not folder.is_dir():
        pytest.skip("camvid is not on this machine")
    return folder


@pytest.fixture(autouse=True)
def _private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indices of data folders go to a throw-away cache."""
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))
