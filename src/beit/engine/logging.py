"""What a run tells: metrics.jsonl, TensorBoard, a line of progress, log.txt."""

import errno
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

from beit.files import fsync_folder, human_bytes, human_time, json_of_measured, naming

Row = Mapping[str, Any]
_PLACE = frozenset({"step", "epoch", "samples_seen", "split"})
_QUIET = frozenset({"lr", "gradient_norm"})
_SHOWN = 4  # metrics in a line of progress
_WORTH_TELLING = 0.15  # of the time without pictures
_LONG = 60.0  # seconds, of a run that is worth a remark on its speed


def encode_row(row: Row) -> str:
    """One line of JSON; what is not finite becomes null, which every reader understands."""
    return json_of_measured(row)


class MetricsLog:
    """metrics.jsonl: each training step exactly once, also after kills and resumptions."""

    def __init__(self, path: Path, *, step: int, evaluated: int | None = None) -> None:
        """Open for the rows after `step`; what a lost continuation had written later is cut.

        Args:
            path: The file.
            step: The last training row that stays.
            evaluated: The last validation row that stays; `step` when not given.
        """
        if path.exists():
            _truncate(path, {"train": step, "val": step if evaluated is None else evaluated})
        self._path = path
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and hand them to the system."""
        with naming(self._path):
            self._file.write("".join(encode_row(row) + "\n" for row in rows))
            self._file.flush()

    def sync(self) -> None:
        """Bring the rows to the disk; done before a checkpoint of their step appears."""
        with naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with naming(self._path):  # what could not be written is tried once more
            self._file.close()


def _truncate(path: Path, last: Mapping[str, int]) -> None:
    """Keep whole lines up to the last steps; atomically, line by line, for logs of any length."""
    temporary = path.with_name(path.name + ".tmp")
    with naming(temporary), path.open("rb") as old, temporary.open("wb") as new:
        for line in old:
            if _is_kept(line, last):
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
    os.replace(temporary, path)
    fsync_folder(path.parent)


def _is_kept(line: bytes, last: Mapping[str, int]) -> bool:
    try:
        row = json.loads(line)
        return line.endswith(b"\n") and bool(row["step"] <= last[row["split"]])
    except (ValueError, KeyError, TypeError):
        return False


class TensorBoardLog:
    """Scalars for TensorBoard; resuming hides what lies past the resumed step."""

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):  # its thread would fail, with a traceback
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, rows: Sequence[Row]) -> None:
        """Add every number of every row under `split/name`."""
        for row in rows:
            for name, value in row.items():
                if name not in _PLACE:
                    self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()


def _open_log(path: Path) -> IO[str]:
    """A log of what is told, also of names that are no UTF-8."""
    return path.open("a", encoding="utf-8", errors="backslashreplace")


class Progress:
    """One live line on a terminal, a line now and then elsewhere; all but the live ones in a log.

    Speaks only where `main` is true.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        log: Path | None = None,
        main: bool = True,
        stream: TextIO | None = None,
        interval: float = 10.0,
    ) -> None:
        self._total = total_steps
        self._main = main
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._interval = interval
        self._log = _open_log(log) if log is not None and main else None
        self._started: tuple[float, int, int] | None = None  # time, step, samples at the last line
        self._pace = 0.0  # smoothed samples a second
        self._steps_pace = 0.0
        self._waited = 0.0  # seconds since the last line
        self._waiting = 0.0  # smoothed share of the time
        self._whole = [0.0, 0.0]  # seconds waited, of seconds
        self._told = 0.0
        self._line_open = False

    def say(self, text: str) -> None:
        """Tell something once, on the terminal and in the log."""
        if not self._main:
            return
        self._end_line()
        self._print(text + "\n")
        self._write_log(text)

    def update(self, row: Row, memory: int | None = None, waited: float = 0.0) -> None:
        """Show where the run is.

        Args:
            row: The newest one.
            memory: Bytes, where the device has its own.
            waited: Seconds since the update before in which there were no pictures to go on with.
        """
        if not self._main:
            return
        now = time.monotonic()
        self._waited += waited
        self._measure(now, int(row["step"]), int(row["samples_seen"]))
        due = now - self._told >= self._interval or row["step"] == self._total
        if not due and not self._live:
            return
        text = self._text(row, memory)
        if self._live:
            self._print(f"\r\x1b[2K{text}")
            self._line_open = True
        if due:
            self._told = now
            self._write_log(text)
            if not self._live:
                self._print(text + "\n")

    def remark(self) -> None:
        """At the end of a run: tell if the pictures came too slowly for it."""
        waited, seconds = self._whole
        if seconds >= _LONG and waited >= _WORTH_TELLING * seconds:
            self.say(
                f"note: {waited / seconds:.0%} of the time there were no pictures to go on with; "
                "more loader processes (data.workers), packed pictures (beit data pack) or banked "
                "tokens (beit bank) make such a run shorter"
            )

    def pause(self) -> None:
        """Do not count the time until the next update (a save, an evaluation) into the rate."""
        self._started = None

    def close(self) -> None:
        """End the live line and close the log."""
        self._end_line()
        log, self._log = self._log, None
        if log is not None:
            with naming(Path(log.name)):
                log.close()

    def _measure(self, now: float, step: int, samples: int) -> None:
        if self._started is None:
            self._started, self._waited = (now, step, samples), 0.0
            return
        then, old_step, old_samples = self._started
        elapsed = now - then
        if elapsed < 0.5 and step < self._total:
            return
        share = 0.3 if self._pace else 1.0
        elapsed = max(elapsed, 1e-6)
        self._pace += share * ((samples - old_samples) / elapsed - self._pace)
        self._steps_pace += share * ((step - old_step) / elapsed - self._steps_pace)
        self._waiting += share * (min(1.0, self._waited / elapsed) - self._waiting)
        self._whole = [self._whole[0] + self._waited, self._whole[1] + elapsed]
        self._started, self._waited = (now, step, samples), 0.0

    def _text(self, row: Row, memory: int | None) -> str:
        parts = [f"step {row['step']}/{self._total}"]
        names = [n for n in row if n not in _PLACE | _QUIET and isinstance(row[n], (int, float))]
        parts += [f"{name.replace('_', ' ')} {row[name]:.4g}" for name in names[:_SHOWN]]
        if "lr" in row:
            parts.append(f"rate {row['lr']:.2e}")
        if self._pace > 0:
            parts.append(f"{self._pace:.0f} pictures/s")
            left = (self._total - int(row["step"])) / max(self._steps_pace, 1e-9)
            if left:
                parts.append(f"{human_time(left)} left")
        if self._waiting >= _WORTH_TELLING:
            parts.append(f"{self._waiting:.0%} of the time without pictures")
        if memory is not None:
            parts.append(human_bytes(memory))
        return "  ".join(parts)

    def _write_log(self, text: str) -> None:
        if self._log is None:
            return
        with naming(Path(self._log.name)):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
            self._log.flush()

    def _end_line(self) -> None:
        if self._line_open:
            self._print("\n")
            self._line_open = False

    def _print(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal went away; the run need not
            self._live = False
