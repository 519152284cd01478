import errno
import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from beit.engine import run_folder
from beit.engine.run_folder import RunFolder
from beit.errors import UserError
from engine.engine_toy import in_child, start_child


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="is not empty: add --resume to go on"):
        RunFolder.open(tmp_path)
    assert os.listdir(tmp_path) == ["mine"]
    RunFolder.open(tmp_path, resume=True).close()
    with pytest.raises(UserError, match="is a file"):
        RunFolder.open(tmp_path / "mine")


def test_an_aborted_beginning_is_no_obstacle(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "a" / "run").close()
    with RunFolder.open(tmp_path / "a" / "run") as run:
        assert run.path.is_dir() and run.checkpoints == run.path / "checkpoints"


def test_other_ranks_neither_make_nor_lock(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", main=False) as run:
        assert not run.path.exists()


def try_to_open(folder: str) -> None:
    try:
        RunFolder.open(folder, resume=True)
    except UserError as error:
        assert "is training in" in str(error) and "process" in str(error)
        os._exit(2)


def hold(folder: str) -> None:
    run = RunFolder.open(folder, resume=True)
    worker = os.fork()  # a loader's process, which lives a little longer than a killed parent
    (run.path / f"ready-{worker}").touch()
    time.sleep(5 if worker == 0 else 60)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path):
        assert in_child(try_to_open, str(tmp_path)) == 2
        with pytest.raises(UserError, match="already training"):
            RunFolder.open(tmp_path, resume=True)
    assert in_child(try_to_open, str(tmp_path)) == 0


def test_a_folder_has_one_name_however_it_is_reached(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "run")
    with RunFolder.open(tmp_path / "run"):
        with pytest.raises(UserError, match="already training"):
            RunFolder.open(link, resume=True)
        (tmp_path / "other").mkdir()
        link.unlink()
        link.symlink_to(tmp_path / "other")
    with RunFolder.open(link) as run:
        link.unlink()  # the run stays where it was begun, and gives up the lock there
        assert run.checkpoints == tmp_path / "other" / "checkpoints"
    RunFolder.open(tmp_path / "other", resume=True).close()


def test_a_killed_holder_does_not_block(tmp_path: Path) -> None:
    process = start_child(hold, str(tmp_path))
    while len(list(tmp_path.glob("ready-*"))) < 2:
        time.sleep(0.02)
    with pytest.raises(UserError, match=f"process {process.pid} on .* is training"):
        RunFolder.open(tmp_path, resume=True)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    RunFolder.open(tmp_path, resume=True).close()


def refusing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(file: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refused)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_once_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(run_folder, "_without_locks", set(), raising=False)
    refusing(monkeypatch, number)
    with RunFolder.open(tmp_path / "one") as run:
        assert f"{run.path} is on a file system without locks" in capfd.readouterr().err
        with pytest.raises(UserError, match="already training"):
            RunFolder.open(tmp_path / "one", resume=True)
        with RunFolder.open(tmp_path / "one" / "tokenizer"):
            assert not capfd.readouterr().err
    RunFolder.open(tmp_path / "one", resume=True).close()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_of_another_process_is_known_by_either_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / ".lock").write_text("process 7 on far")
    refusing(monkeypatch, number)
    with pytest.raises(UserError, match="process 7 on far is training"):
        RunFolder.open(tmp_path)
