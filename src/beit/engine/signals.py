"""SIGTERM and Ctrl-C: finish the step, save, leave. A second Ctrl-C leaves at once."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from beit.errors import Interrupted

LAUNCHED = "BEIT_LAUNCHED"  # set by our launcher for its ranks: the folder it shares with them
ECHO = 1.0  # seconds within which a second signal is the same one, told by shell and launcher


class StopNow(BaseException):
    """Raised by the handler where it is safe to break off in the middle (an evaluation)."""


class StoppedBySignal(Interrupted):
    """An interruption that knows its signal, for the exit status."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class StopSignal:
    """While entered, turns the two signals into a flag. Outside the main thread it does nothing."""

    def __init__(self, *, main: bool = True) -> None:
        self.received: signal.Signals | None = None
        self._main = main
        self._when = 0.0
        self._breakable = False
        self._process, self._parent = os.getpid(), os.getppid()
        self._launched = LAUNCHED in os.environ
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came, or the launcher that would pass one on is gone."""
        orphaned = self._launched and os.getppid() != self._parent
        return self.received is not None or orphaned

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Let a signal break off what runs inside with StopNow."""
        self._breakable = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self._breakable = False

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker inherited the handler
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.received is None:
            self.received, self._when = signal.Signals(number), now
            if self._main:  # not through Python's stream: the signal may have come inside it
                os.write(2, b"\nStopping: finishing this step, then saving.\n")
            if self._breakable:
                raise StopNow
        elif number == signal.SIGINT and now - self._when > ECHO:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + number)
