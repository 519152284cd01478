import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from beit.engine import fit as engine_fit
from beit.engine.checkpoints import Checkpoints
from beit.engine.distribution import World
from beit.engine.fit import fit
from beit.engine.protocol import Evaluation, StepContext, StepOutput
from beit.engine.run_folder import RunFolder
from beit.engine.signals import LAUNCHED, StopSignal
from beit.errors import Interrupted
from engine.engine_toy import (
    SETTINGS,
    ToyBatch,
    ToyTask,
    hash_of,
    rows_of,
    run_toy,
    start_child,
    toy_batches,
    toy_evaluation,
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_saves_leaves_and_tells_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    run_toy(tmp_path / "whole")
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def hook(done: int) -> None:
        if done == 6:
            os.kill(os.getpid(), number)

    folder = tmp_path / "parts"
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 7 of 17.*--resume"):
        run_toy(folder, hook=hook)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert Checkpoints(folder / "checkpoints").steps()[-1] == 7
    run_toy(folder)
    assert hash_of(folder) == hash_of(tmp_path / "whole")


def test_a_signal_in_the_last_step_finds_the_run_finished(tmp_path: Path) -> None:
    def hook(done: int) -> None:
        if done == 16:
            os.kill(os.getpid(), signal.SIGTERM)

    nothing_left = replace(SETTINGS, evaluate_every=0)
    assert run_toy(tmp_path, nothing_left, hook=hook).step == 17
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 17


def test_a_signal_that_another_rank_received_stops_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else ranks whom a signal reached in different steps would wait for each other."""
    done: list[int] = []

    class Among(World):
        def any_host(self, flag: bool) -> bool:
            return flag or done[-1] == 6

    monkeypatch.setattr(engine_fit, "current_world", Among)
    with pytest.raises(Interrupted, match="stopped by a signal elsewhere after step 7 of 17"):
        run_toy(tmp_path, hook=done.append)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 7


@pytest.mark.parametrize("launched", [True, False])
def test_a_rank_whose_launcher_is_gone_stops(
    monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    """Nobody would end it any more; a run under a shell that was closed goes on."""
    if launched:
        monkeypatch.setenv(LAUNCHED, "a folder")
    else:
        monkeypatch.delenv(LAUNCHED, raising=False)
    stop, parent = StopSignal(), os.getppid()
    assert not stop.requested
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    assert stop.requested == launched


def test_a_sweep_that_leaves_out_failing_runs_ends_by_a_signal(tmp_path: Path) -> None:
    def hook(done: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    begun = []
    with pytest.raises(KeyboardInterrupt, match="go on with the same command"):
        for number in range(3):
            begun.append(number)
            with suppress(Exception):
                run_toy(tmp_path / str(number), hook=hook)
    assert begun == [0]


def test_an_evaluation_is_broken_off_and_done_again(tmp_path: Path) -> None:
    run_toy(tmp_path / "whole")
    asked: list[int] = []

    def slow(task: nn.Module, step: int) -> Evaluation:
        asked.append(step)
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return toy_evaluation(task, step)

    folder, started = tmp_path / "parts", time.monotonic()
    with RunFolder.open(folder) as run, pytest.raises(Interrupted, match="after step 12"):
        names = {"data": "toy", "recipe": "toy"}
        fit(ToyTask(), toy_batches(SETTINGS), SETTINGS, run=run, evaluate=slow, fingerprints=names)
    assert time.monotonic() - started < 10 and asked == [6, 12]
    assert [r["step"] for r in rows_of(folder) if r["split"] == "val"] == [6]
    run_toy(folder)
    assert hash_of(folder) == hash_of(tmp_path / "whole")


def test_without_a_folder_it_says_that_nothing_is_kept() -> None:
    settings = replace(SETTINGS, evaluate_every=0)

    def prepare(batch: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return batch

    with pytest.raises(Interrupted, match="nothing is saved, because the run has no folder$"):
        fit(ToyTask(), toy_batches(settings), settings, prepare=prepare)


def test_a_loader_that_dies_of_the_same_signal_does_no_harm(tmp_path: Path) -> None:
    def hook(done: int) -> None:
        if done == 6:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("DataLoader worker exited unexpectedly")

    with pytest.raises(Interrupted, match="after step 6"):
        run_toy(tmp_path, hook=hook)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 6


class Norming(ToyTask):
    def __init__(self) -> None:
        super().__init__(chance=False)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch: ToyBatch, context: StepContext) -> StepOutput:
        return super().forward(replace(batch, x=self.norm(batch.x)), context)


def test_a_step_broken_off_between_its_micro_batches_leaves_no_trace(tmp_path: Path) -> None:
    settings = replace(SETTINGS, accumulate=2)
    run_toy(tmp_path / "whole", settings, task=Norming())
    micro_batches: list[int] = []

    def hook(done: int) -> None:
        micro_batches.append(done)
        if micro_batches.count(6) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("DataLoader worker exited unexpectedly")

    folder = tmp_path / "parts"
    with pytest.raises(Interrupted, match="after step 6"):
        run_toy(folder, settings, hook=hook, task=Norming())
    run_toy(folder, settings, task=Norming())
    assert hash_of(folder) == hash_of(tmp_path / "whole")


def sleep_through_it() -> None:
    with StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the shell's and the launcher's: one Ctrl-C
        time.sleep(30)


def test_the_echo_of_a_ctrl_c_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shell and launcher both pass it on; the state is to be saved all the same."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    with StopSignal(main=False) as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.received == signal.SIGINT and left == []
        now = time.monotonic() + 2
        monkeypatch.setattr(time, "monotonic", lambda: now)
        os.kill(os.getpid(), signal.SIGTERM)  # a batch system's repetition is none either
        assert left == []
        os.kill(os.getpid(), signal.SIGINT)
    assert left == [130]


def test_a_second_ctrl_c_leaves_at_once() -> None:
    process, started = start_child(sleep_through_it), time.monotonic()
    while process.is_alive() and time.monotonic() - started < 30:
        time.sleep(1.2)
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 128 + signal.SIGINT
