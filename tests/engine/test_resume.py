"""A run that was stopped anywhere ends bitwise where one that was not stopped ends."""

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn
from torch.optim import SGD

from beit.engine.checkpoints import Checkpoints, read_snapshot
from beit.engine.fit import fit
from beit.engine.protocol import NO_HOOKS, Hooks
from beit.engine.run_folder import RunFolder
from beit.engine.settings import FitSettings
from beit.errors import UserError
from engine.engine_toy import (
    SETTINGS,
    ToyTask,
    hash_of,
    in_child,
    rows_of,
    run_toy,
    toy_batches,
    toy_child,
)


class Stop(Exception):
    """The process ends here, without a word."""


def stopped_at(folder: Path, step: int, settings: FitSettings) -> None:
    calls = 0

    def hook(done: int) -> None:
        nonlocal calls
        calls += done == step
        if calls == min(2, settings.accumulate):  # in the middle of accumulation, where there is
            raise Stop

    with pytest.raises(Stop):
        run_toy(folder, settings, hook=hook)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (SETTINGS, (0, 1, 5, 10, 12, 16)),
        (replace(SETTINGS, accumulate=4, precision="bfloat16", ema=None), (6, 16)),
    ],
)
def test_resume_is_bitwise(tmp_path: Path, settings: FitSettings, steps: tuple[int, ...]) -> None:
    """Stopped before the first step, at epoch edges, after the last but one, and at others."""
    run_toy(tmp_path / "whole", settings)
    expected = hash_of(tmp_path / "whole")
    for step in steps:
        stopped_at(tmp_path / str(step), step, settings)
        result = run_toy(tmp_path / str(step), settings)
        assert result.step == 17 and hash_of(tmp_path / str(step)) == expected, f"step {step}"


def test_a_folder_whose_name_is_not_utf8_is_as_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without TensorBoard, which takes no such name; once told, not a fault."""
    settings, folder = replace(SETTINGS, tensorboard=True), tmp_path / os.fsdecode(b"r\xff")
    run_toy(tmp_path / "whole", settings)
    assert "TensorBoard" not in capsys.readouterr().err
    stopped_at(folder, 10, settings)
    assert capsys.readouterr().err.count("nothing is written for TensorBoard") == 1
    run_toy(folder, settings)
    assert hash_of(folder) == hash_of(tmp_path / "whole")


def test_resume_ten_times_at_random(tmp_path: Path) -> None:
    run_toy(tmp_path / "whole")
    chance = random.Random(2)
    for _ in range(10):
        stopped_at(tmp_path / "parts", chance.randrange(12, 15), replace(SETTINGS, save_every=3))
    run_toy(tmp_path / "parts", replace(SETTINGS, save_every=3))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")
    ends = [
        read_snapshot(Checkpoints(tmp_path / n / "checkpoints").path(17))
        for n in ("whole", "parts")
    ]
    for group, tensors in ends[0].tensors.items():
        for name, value in tensors.items():
            assert value.equal(ends[1].tensors[group][name]), f"{group} {name}"


def test_five_interruptions_over_two_epoch_edges(tmp_path: Path) -> None:
    """kill -9 in a step, in a save, in an epoch's first step; SIGTERM; Ctrl-C."""
    run_toy(tmp_path / "whole")
    folder = tmp_path / "parts"
    plans = [
        ({"signal_at_step": 5, "signal": signal.SIGKILL}, -signal.SIGKILL),
        ({"kill_at_call": 30}, -signal.SIGKILL),
        ({"signal_at_step": 9, "signal": signal.SIGTERM}, 128 + signal.SIGTERM),
        ({"signal_at_step": 10, "signal": signal.SIGKILL}, -signal.SIGKILL),
        ({"signal_at_step": 11, "signal": signal.SIGINT}, 128 + signal.SIGINT),
        ({}, 0),
    ]
    for plan, code in plans:
        assert in_child(toy_child, str(folder), plan) == code, plan
    assert hash_of(folder) == hash_of(tmp_path / "whole")
    rows = rows_of(folder)
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 18))
    assert [row["step"] for row in rows if row["split"] == "val"] == [6, 12, 17]


@pytest.mark.slow
def test_fifty_kills_inside_saves(tmp_path: Path) -> None:
    """A run that saves every step, killed 50 times at some call of a save: all resume."""
    settings = {"total_steps": 60, "save_every": 1}
    run_toy(tmp_path / "whole", replace(SETTINGS, total_steps=60, save_every=1))
    chance = random.Random(4)
    folder, kills, reached = tmp_path / "parts", 0, 0
    while kills < 50:
        plan = {"settings": settings, "kill_at_call": chance.randrange(1, 40)}
        assert in_child(toy_child, str(folder), plan) in (-signal.SIGKILL, 0)
        kills += 1
        steps = Checkpoints(folder / "checkpoints").steps()
        assert not steps or steps[-1] >= reached - 1
        reached = max([reached, *steps])
    assert in_child(toy_child, str(folder), {"settings": settings}) == 0
    assert hash_of(folder) == hash_of(tmp_path / "whole")
    assert [r["step"] for r in rows_of(folder) if r["split"] == "train"] == list(range(1, 61))


def test_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy(tmp_path / "whole")
    folder = tmp_path / "parts"
    stopped_at(folder, 13, SETTINGS)
    model = folder / "checkpoints" / "step-00000012" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    run_toy(folder)
    told = capsys.readouterr().err
    assert "checkpoint step-00000012 is refused: model.safetensors has" in told
    assert "going on from step-00000008, the newest one that is sound" in told
    assert "is refused" in (folder / "log.txt").read_text()
    assert hash_of(folder) == hash_of(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = run_toy(tmp_path)
    before = hash_of(tmp_path)
    again = run_toy(tmp_path)
    assert hash_of(tmp_path) == before
    assert (again.step, again.metrics, again.validation) == (17, first.metrics, first.validation)


def test_another_run_is_refused(tmp_path: Path) -> None:
    stopped_at(tmp_path, 6, SETTINGS)
    batches = toy_batches(SETTINGS)
    with RunFolder.open(tmp_path, resume=True) as run:
        for name in ("data", "recipe"):
            with pytest.raises(UserError, match=f"the {name} is not the one"):
                fit(ToyTask(), batches, SETTINGS, run=run, resume=True, fingerprints={name: "?"})
    stopped_at(tmp_path / "again", 6, SETTINGS)
    with RunFolder.open(tmp_path / "again", resume=True) as run:
        with pytest.raises(UserError, match="8 pictures a step and would go on with 16"):
            fit(ToyTask(), batches, replace(SETTINGS, global_batch=16), run=run, resume=True)
        other = ToyTask()
        other.extra = other.net[0]
        other.net = nn.Sequential(*list(other.net)[1:])
        with pytest.raises(UserError, match="does not fit this run: the checkpoint is of another"):
            fit(other, batches, SETTINGS, run=run, resume=True)


def test_resume_needs_a_folder() -> None:
    with pytest.raises(AssertionError):
        fit(ToyTask(), toy_batches(SETTINGS), SETTINGS, resume=True)


def test_another_optimiser_is_refused(tmp_path: Path) -> None:
    def run(steps: int, hooks: Hooks = NO_HOOKS) -> int:
        settings = replace(SETTINGS, total_steps=steps, save_every=2)
        with RunFolder.open(tmp_path, resume=True) as folder:
            batches = toy_batches(settings)
            return fit(ToyTask(), batches, settings, run=folder, resume=True, hooks=hooks).step

    assert run(2) == 2
    with pytest.raises(UserError, match="AdamW then, SGD now"):
        run(4, Hooks(optimiser=lambda groups: SGD(groups, lr=1.0)))
    assert run(4) == 4
