"""Ranks: who we are, and the few words ranks exchange beside gradients.

Gradients and per-step numbers travel on the device's own group (nccl on CUDA, gloo on a CPU).
Everything the host decides (stop now, the save failed, which checkpoint) travels on a gloo group,
so that asking never waits for the device.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from traceback import clear_frames

import torch
import torch.distributed as dist
from torch import Tensor

from beit.engine.failure import Diverged
from beit.engine.launcher import (
    LEFT_ALONE,
    RankError,
    launch,
    register_rank,
    restarted,
    tell_launcher,
)
from beit.errors import Interrupted, UserError, files_as_mistakes

__all__ = ["RankError", "World", "current_world", "launch", "process_group", "restarted"]

_TIMEOUT = timedelta(minutes=30)  # a rank may save or evaluate while the others wait


@dataclass(frozen=True)
class World:
    """The processes that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # ranks on this host

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """This rank's device.

        Raises:
            UserError: There is none of that kind, fewer than there are ranks, or one was named that
                all ranks of this host would have to share.
        """
        if kind.startswith("cuda:") and self.local_size > 1:
            raise UserError(
                f"--device {kind} is a single GPU for {self.local_size} processes: "
                "use --device cuda, which gives each process its own"
            )
        if kind != "cuda":
            return torch.device(kind)
        if not torch.cuda.is_available():
            raise UserError("this machine has no CUDA device: use --device cpu")
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{self.local_rank + 1} processes on {torch.cuda.device_count()} GPUs: "
                "ask for as many as there are"
            )
        return torch.device("cuda", self.local_rank)

    def add_(self, tensor: Tensor) -> None:
        """Sum a device tensor over ranks in place, without a word to the host."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def sum_host(self, values: Sequence[float]) -> list[float]:
        """Sum small host numbers over ranks, in double precision."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=_host_group)
        return [float(value) for value in tensor]

    def any_host(self, flag: bool) -> bool:
        """Whether any rank says yes; the same answer everywhere."""
        return self.sum_host([float(flag)])[0] > 0

    def tell(self, text: str) -> str:
        """Give every rank the text of rank 0."""
        if self.size == 1:
            return text
        data = text.encode(errors="surrogateescape")  # names of files may be no UTF-8
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0, group=_host_group)
        body = torch.zeros(int(length), dtype=torch.uint8)
        if self.main and data:
            body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(body, 0, group=_host_group)
        return bytes(body.tolist()).decode(errors="surrogateescape")

    def barrier(self, seconds: float = 600.0) -> None:
        """Wait for all ranks.

        Raises:
            RankError: Not all came in time; the message names who is missing where known.
        """
        if self.size == 1:
            return
        try:
            dist.monitored_barrier(_host_group, timeout=timedelta(seconds=seconds))
        except RuntimeError as error:
            raise RankError(f"rank {self.rank} of {self.size}: not all ranks came: {error}") from (
                error
            )


_current = World()
_host_group: dist.ProcessGroup | None = None  # None: the default group, when that is gloo


def current_world() -> World:
    """The ranks as they are now; a world of one outside `process_group`."""
    return _current


@contextmanager
def process_group(device: str = "cpu") -> Iterator[World]:
    """Join the other ranks when a launcher (ours or torchrun) started this process.

    Without a launcher it is a world of one and costs nothing.

    Args:
        device: "cpu" or "cuda".

    Raises:
        RankError: Whatever failed inside on one of several ranks, with the rank's number.
        SystemExit: Our launcher started us and the user is to be told something; it will tell.
    """
    global _current
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        with files_as_mistakes():
            yield _current
        return
    previous, _current = _current, _join(device)
    together = False
    try:
        with files_as_mistakes():  # of one rank perhaps, as any other mistake
            yield _current
        together = True
    except (UserError, Interrupted, Diverged) as error:
        # All ranks agree on a stop and see the same numbers; a mistake (no memory, too many bad
        # pictures) may be seen by one alone, while the others wait for it in the next sum.
        together = not isinstance(error, UserError)
        clear_frames(error.__traceback__)
        status = _status(error)
        if tell_launcher(str(error), status):
            # 0 after a signal: the launcher must neither restart nor hurry ranks that are saved
            raise SystemExit(0 if status > 128 else status) from None
        raise
    except Exception as error:
        clear_frames(error.__traceback__)
        name = f"rank {_current.rank} of {_current.size}"
        failure = RankError(f"{name} failed: {type(error).__name__}: {error}")
        if tell_launcher(str(failure), 1, lasting=False) and _is_left_alone(error):
            raise SystemExit(LEFT_ALONE) from None  # the rank that is gone has the story
        raise failure from error
    finally:
        _current = previous
        _leave(together=together)


def _is_left_alone(error: Exception) -> bool:
    """Whether an error says only that another rank does not answer."""
    return isinstance(error, dist.DistBackendError) or "gloo/transport" in str(error)


def _status(error: BaseException) -> int:
    if isinstance(error, Interrupted):
        return 128 + int(getattr(error, "signal", 2))
    return 2 if isinstance(error, UserError) else 1


def _join(device: str) -> World:
    global _host_group
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))
    if device == "cuda":
        torch.cuda.set_device(World(local_rank=local_rank).device("cuda"))
    register_rank(local_rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    if backend == "nccl":
        _host_group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    size = dist.get_world_size()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return World(dist.get_rank(), size, local_rank, local_size)


def _leave(*, together: bool) -> None:
    """Take the groups apart while Python is still whole.

    A group lives as long as anything refers to it (DDP does, in cycles), and one whose threads are
    still busy when the interpreter ends aborts the process. So nothing of ours holds one, and what
    DDP holds is collected here.

    Args:
        together: Whether all ranks leave now; nccl's ordered end may wait for the others until
            the time limit, so it is broken off when they may never come. gloo waits for nobody.
    """
    global _host_group
    host, _host_group = _host_group, None
    if together or host is None:
        dist.destroy_process_group()
    else:
        with suppress(RuntimeError):  # a broken device must not hide why we leave
            _abort_device_group()
            dist.destroy_process_group(host)
    gc.collect()


def _abort_device_group() -> None:
    group = dist.group.WORLD
    assert group is not None
    group.abort()
