"""Runs with parts of one's own, handed in from Python."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import beit
from beit import masking
from beit.errors import UserError
from recipes.recipe_runs import PRETRAIN, rows_of

PIXELS = {**PRETRAIN, "objective.target": "pixels"}  # no tokenizer has to be trained


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(masking, "MASKERS", dict(masking.MASKERS))
    monkeypatch.setattr(masking, "_CAPACITIES", {})
    yield


def half(generator: np.random.Generator, grid: masking.Grid, **settings: Any) -> masking.Mask:
    mask = np.zeros(grid, np.bool_)
    mask[:, : grid[1] // 2] = True
    return mask if generator.random() < 0.5 else ~mask


@pytest.mark.usefixtures("registry")
def test_a_recipe_takes_a_registered_masking(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no masking 'half': choose one of 'blockwise'"):
        beit.recipe("digits", {"masking.kind": "half"})
    masking.register("half", half)
    beit.pretrain(
        beit.recipe("digits", PIXELS | {"masking.kind": "half"}), "digits", tmp_path / "run"
    )
    assert len(rows_of(tmp_path / "run")) == 4


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_without_room_ends_the_run_with_a_sentence(tmp_path: Path, workers: int) -> None:
    masking.register("half", half, lambda grid, **settings: 1)
    changes = PIXELS | {"masking.kind": "half", "data.workers": workers}
    with pytest.raises(UserError, match="8 patches does not fit a list of 1") as refusal:
        beit.pretrain(beit.recipe("digits", changes), "digits", tmp_path / "run")
    assert "\n" not in str(refusal.value)
