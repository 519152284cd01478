"""Start several ranks on one machine with torch's own launcher; tell once what failed.

Ranks leave the reason of a failure in the file that torch's launcher names for them, and print
nothing; the launching process tells it once. Stopped with Ctrl-C or SIGTERM it passes the signal on
and waits for the ranks to save.

Departure: torch's launcher would start ranks again after any failure. We start them again
ourselves, and only where that can help: not after a user's mistake or a training that diverged.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from beit.engine.signals import ECHO, LAUNCHED, StoppedBySignal
from beit.errors import UserError
from beit.files import atomic_write_text
from beit.machine import allowed_cores

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

LEFT_ALONE = 75  # exit status of a rank that failed because another one was gone
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_AGAIN = "started-again"  # in the launcher's folder once ranks have been started again
_WAY_OUT = "; the run can go on with --resume"
_GRACE = 30  # seconds between one rank's failure and the end of those that do not leave


class RankError(RuntimeError):
    """Something of ours failed on one of several ranks; the message names the rank."""


def launch(processes: int, argv: Sequence[str], device: str = "cpu", *, restarts: int = 0) -> None:
    """Run a command as several ranks and wait for them.

    Args:
        processes: How many, on this machine.
        argv: The command, program first; `process_group` inside it finds the other ranks.
        device: "cpu" or "cuda", to see that there are enough.
        restarts: How often to start all ranks again after one died; they then resume.

    Raises:
        UserError: A rank left with the user's mistake (status 2), or there are too few devices.
        Interrupted: A signal came; the ranks have saved.
        RankError: A rank failed or died; the message names it.
    """
    _require_devices(processes, device)
    for left in range(restarts, -1, -1):
        with tempfile.TemporaryDirectory(prefix="beit-launch-") as name:
            folder = Path(name)
            if left < restarts:
                (folder / _AGAIN).touch()
            failure, lasting = _run(processes, argv, folder)
        if failure is None:
            return
        if lasting or not left:
            raise failure
        reason = str(failure).removesuffix(_WAY_OUT)
        told = f"beit: {reason}; all ranks are started again ({restarts - left + 1} of {restarts})"
        print(told, file=sys.stderr, flush=True)


def _run(processes: int, argv: Sequence[str], folder: Path) -> tuple[BaseException | None, bool]:
    """Run the ranks once: what failed, and whether the same would happen again."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    with _environment(processes, str(folder)):
        start = elastic_launch(_config(processes, folder), argv[0])
        try:
            with _signals_passed_on(folder, processes):
                start(*argv[1:])
        except ChildFailedError as error:
            return _explained(list(error.failures.values()), processes)
        except SignalException as stop:
            name = stop.sigval.name
            return StoppedBySignal(f"stopped by {name} before it began", stop.sigval), True
    return _stopped(folder), True


@contextmanager
def _signals_passed_on(folder: Path, processes: int) -> Iterator[None]:
    """Hand SIGTERM and Ctrl-C to the ranks and go on waiting; a second Ctrl-C kills them.

    Departure: torch's launcher would signal each rank's whole process group, so that the loader's
    workers die under a rank that is about to save, and would not wait after a second signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        ranks = [int(path.read_text()) for path in folder.glob("*.pid")]
        now = time.monotonic()
        if not first and len(ranks) < processes:  # not all have come so far: nothing to save
            raise SignalException("", signal.Signals(number))
        again = bool(first) and number == signal.SIGINT and now - first[0] > ECHO
        for rank in ranks if again or not first else []:
            with suppress(ProcessLookupError):
                os.killpg(rank, signal.SIGKILL) if again else os.kill(rank, number)
        first.append(now)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell_launcher(message: str, status: int, *, lasting: bool = True) -> bool:
    """Leave the reason of a failure to the launcher, which tells it once for all ranks.

    Args:
        message: One sentence.
        status: The exit status that goes with it.
        lasting: Whether the same would happen to ranks that are started again.

    Returns:
        False when it was not `launch` that started us: then it is for the caller to tell.
    """
    target = os.environ.get(_ERROR_FILE)
    if LAUNCHED not in os.environ or not target:
        return False
    seconds = str(int(time.time()))
    extra = {"py_callstack": "", "timestamp": seconds, "status": status, "lasting": lasting}
    body = {"message": {"message": message, "extraInfo": extra}}
    atomic_write_text(Path(target), json.dumps(body))
    return True


def register_rank(local_rank: int) -> None:
    """Tell our launcher, if there is one, which process a rank is."""
    if LAUNCHED in os.environ:  # whole or not at all: a signal may have the launcher look just now
        atomic_write_text(Path(os.environ[LAUNCHED], f"{local_rank}.pid"), str(os.getpid()))


def restarted() -> bool:
    """Whether a launcher started this process again after a failure: then it is to resume."""
    ours = LAUNCHED in os.environ and Path(os.environ[LAUNCHED], _AGAIN).exists()
    return ours or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _require_devices(processes: int, device: str) -> None:
    if processes < 1:
        raise UserError(f"{processes} processes cannot train: ask for 1 or more")
    if device == "cuda":
        import torch

        there = torch.cuda.device_count()
        if processes > there:
            raise UserError(f"{processes} GPUs were asked for and this machine has {there}")


def _config(processes: int, folder: Path) -> "LaunchConfig":
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
        signals_to_handle="",  # see `_signals_passed_on`
        shutdown_timeout=_GRACE,
    )


@contextmanager
def _environment(processes: int, folder: str) -> Iterator[None]:
    """What ranks are to find, and quiet from torch's launcher; all undone afterwards."""
    threads = str(max(1, allowed_cores() // processes))
    wanted = {
        LAUNCHED: folder,
        # Torch's C++ side reports a missing rank on its own, before we can tell which it was.
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "FATAL"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
    before = {name: os.environ.get(name) for name in wanted}
    quiet = logging.root.manager.disable
    os.environ.update(wanted)
    logging.disable(logging.CRITICAL)  # its loggers have levels of their own
    try:
        yield
    finally:
        logging.disable(quiet)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _explained(failures: "list[ProcessFailure]", processes: int) -> tuple[Exception, bool]:
    """The error of the rank that failed first: a killed one, then a user's mistake, then others.

    When a rank dies the others soon fail too, for want of it, so the order says who began.

    Returns:
        The error, and whether the same would happen to ranks that are started again.
    """

    def order(failure: "ProcessFailure") -> tuple[int, int]:
        status = _told(failure.error_file_data).get("status")
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and status is None
        if killed or status == 2:
            return (0 if killed else 1, failure.timestamp)
        place = {2: 2, LEFT_ALONE: 4}.get(failure.exitcode, 3)
        return (place, failure.timestamp)

    first = min(failures, key=order)
    told = _told(first.error_file_data)
    if told:
        kind = UserError if told["status"] == 2 else RankError
        return kind(told["message"]), bool(told["lasting"])
    where = f"rank {first.local_rank} of {processes} (process {first.pid})"
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        return RankError(f"{where} was killed by {name}{_WAY_OUT}"), False
    if first.exitcode == 2:  # before it had joined the others; it has told the user itself
        return UserError(f"{where} refused what was asked for, with the reason above"), True
    return RankError(f"{where} failed with exit status {first.exitcode}"), False


def _told(data: "dict[str, Any]") -> "dict[str, Any]":
    """What a rank said with `tell_launcher`: message, status, lasting; empty when nothing."""
    inner = data.get("message")
    if not isinstance(inner, dict) or "status" not in inner.get("extraInfo", {}):
        return {}
    return {"message": str(inner["message"]), **inner["extraInfo"]}


def _stopped(folder: Path) -> BaseException | None:
    """What the ranks said when a signal had stopped them; they leave with status 0 then."""
    for path in sorted(folder.glob("logs/**/error.json"), reverse=True):
        told = _told(json.loads(path.read_text(encoding="utf-8")))
        if told and told["status"] > 128:
            return StoppedBySignal(told["message"], told["status"] - 128)
    return None
