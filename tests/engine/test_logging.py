import io
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beit.engine.distribution import World
from beit.engine.fit import fit
from beit.engine.logging import MetricsLog, Progress, TensorBoardLog, encode_row
from beit.engine.recorder import Recorder
from beit.files import atomic_write_text
from engine.engine_toy import SETTINGS, ToyTask, rows_of, run_toy, toy_batches


def row(step: int, split: str = "train") -> dict[str, object]:
    return {"step": step, "split": split, "loss": 1.5}


def test_torn_and_lost_rows_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [row(1), row(2), row(2, "val"), row(3), row(4), row(4, "val"), row(5)]
    path.write_text("".join(encode_row(r) + "\n" for r in lines) + '{"step": 6, "lo')
    log = MetricsLog(path, step=4, evaluated=2)
    log.write([row(4, "val"), row(5)])
    log.sync()
    log.close()
    kept = [(r["step"], r["split"]) for r in rows_of(tmp_path)]
    expected = [(1, "train"), (2, "train"), (2, "val"), (3, "train"), (4, "train")]
    assert kept == [*expected, (4, "val"), (5, "train")]


@pytest.mark.parametrize("rubbish", [b'{"step": 1, "split": "train"}', b"\xff\xfe\n", b"7\n", b""])
def test_rubbish_at_the_end_is_dropped(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    good = encode_row(row(1)).encode() + b"\n"
    path.write_bytes(good + rubbish)
    MetricsLog(path, step=9).close()
    assert path.read_bytes() == good


def test_what_is_not_finite_is_null() -> None:
    assert json.loads(encode_row({"a": float("nan"), "b": float("inf"), "c": 1.0})) == {
        "a": None,
        "b": None,
        "c": 1.0,
    }


def test_rows_of_a_run(tmp_path: Path) -> None:
    run_toy(tmp_path)
    rows = rows_of(tmp_path)
    train = [r for r in rows if r["split"] == "train"]
    assert [r["step"] for r in train] == list(range(1, 18))
    assert train[4]["samples_seen"] == 40 and train[4]["epoch"] == 1.0
    assert list(train[0]) == [
        "step",
        "epoch",
        "samples_seen",
        "split",
        "loss",
        "root",
        "gradient_norm",
        "lr",
    ]
    assert [r["step"] for r in rows if r["split"] == "val"] == [6, 12, 17]


def test_tensorboard_hides_what_was_lost(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = replace(SETTINGS, tensorboard=True, total_steps=8)

    def hook(done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, settings, hook=hook)
    run_toy(tmp_path, settings)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == list(range(1, 9))
    losses = [r["loss"] for r in rows_of(tmp_path) if r["split"] == "train"]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses)


def place(step: int, **more: float) -> dict[str, object]:
    return {"step": step, "epoch": 0.5, "samples_seen": step * 8, "split": "train", **more}


def test_a_line_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("beit.engine.logging.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    progress = Progress(100, log=tmp_path / "log.txt", stream=stream, interval=10)
    for step in range(1, 101):
        progress.update(place(step, loss=2.0, accuracy=0.25, lr=1e-3, gradient_norm=1.0), 3 * 10**9)
        clock[0] += 1.0
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11 and lines[0].startswith("step 1/100  loss 2  accuracy 0.25")
    assert lines[1] == (
        "step 11/100  loss 2  accuracy 0.25  rate 1.00e-03  8 pictures/s  1 min 29 s left  3.0 GB"
    )
    assert lines[-1].startswith("step 100/100")
    assert [line[21:] for line in (tmp_path / "log.txt").read_text().splitlines()] == lines


@pytest.mark.parametrize(("waited", "seconds"), [(0.5, 99), (0.1, 99), (0.5, 30)])
def test_a_run_that_lacks_pictures_says_so(
    monkeypatch: pytest.MonkeyPatch, waited: float, seconds: int
) -> None:
    clock = [100.0]
    monkeypatch.setattr("beit.engine.logging.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    progress = Progress(200, stream=stream, interval=10)
    progress.update(place(1, loss=2.0), None, 40.0)  # before the first line: the loader's start
    for step in range(2, seconds + 2):
        clock[0] += 1.0
        progress.update(place(step, loss=2.0), None, waited)
    progress.remark()
    lines = stream.getvalue().splitlines()
    slow, long = waited > 0.2, seconds > 60
    assert ("  50% of the time without pictures" in lines[1]) == slow
    assert lines[-1].startswith("note: 50% of the time there were no pictures") == (slow and long)


def _busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("delay", [time.sleep, _busy])
def test_waiting_for_pictures_is_measured_and_reading_them_on_a_cpu_is_not(
    monkeypatch: pytest.MonkeyPatch, delay: Callable[[float], None]
) -> None:
    told: list[float] = []
    monkeypatch.setattr(Progress, "update", lambda *given: told.append(given[-1]))

    def slow(seen: int) -> Iterator[Any]:
        for batch in toy_batches(SETTINGS)(seen):
            delay(0.1)
            yield batch

    fit(ToyTask(), slow, replace(SETTINGS, total_steps=3))
    assert len(told) == 3
    assert all(waited >= 0.09 for waited in told) if delay is time.sleep else min(told) < 0.05


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_line_on_a_terminal() -> None:
    stream = Terminal()
    progress = Progress(3, stream=stream, interval=1000)
    for step in (1, 2):
        progress.update(place(step, loss=2.0))
    progress.say("saved")
    progress.close()
    assert stream.getvalue() == ("\r\x1b[2Kstep 1/3  loss 2\r\x1b[2Kstep 2/3  loss 2\nsaved\n")


def test_only_rank_0_speaks(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = Progress(3, log=tmp_path / "log.txt", stream=stream, main=False)
    progress.say("x")
    progress.update(place(3))
    progress.close()
    assert stream.getvalue() == "" and not (tmp_path / "log.txt").exists()


def test_a_terminal_that_goes_away_stops_nothing() -> None:
    stream = Terminal()
    progress = Progress(3, stream=stream)
    stream.close()
    progress._live = True
    progress.update(place(3))
    progress.say("x")


def test_a_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its name is, before anything else is done."""
    synced: set[int] = set()
    sync, rename = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def renaming(old: Path, new: Path) -> None:
        assert old.stat().st_ino in synced
        rename(old, new)
        synced.discard(tmp_path.stat().st_ino)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", renaming)
    atomic_write_text(tmp_path / "f", "text\n")
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "f")} <= synced


def test_atomic_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    atomic_write_text(path, "old\n")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full") as full:
        atomic_write_text(path, "new\n")
    assert full.value.filename == str(path)  # not the name that it has for an instant
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_tensorboard_may_not_write_to_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later it would be a thread's traceback."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "tensorboard")
    with pytest.raises(PermissionError) as refused:
        TensorBoardLog(tmp_path / "tensorboard", step=0)
    assert refused.value.filename == str(tmp_path / "tensorboard")


@pytest.mark.parametrize("rank", [0, 1])
def test_rows_are_told_on_the_first_rank_alone(rank: int) -> None:
    told: list[dict[str, object]] = []
    recorder = Recorder(
        SETTINGS,
        World(rank, 2),
        None,
        lambda record, row: Exception(),
        step=0,
        evaluated=0,
        on_row=told.append,
    )
    recorder.add_validation(5, {"accuracy": 0.5})
    recorder.close()
    assert [(row["step"], row["split"], row["accuracy"]) for row in told] == [(5, "val", 0.5)] * (
        rank == 0
    )
