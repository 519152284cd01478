"""From device numbers to rows: read seldom, check, write each step once."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from beit.engine.distribution import World
from beit.engine.logging import MetricsLog, Progress, TensorBoardLog
from beit.engine.run_folder import RunFolder
from beit.engine.settings import FitSettings
from beit.engine.step import StepRecord
from beit.files import is_utf8

Row = dict[str, Any]
OnFailure = Callable[[StepRecord, Row], Exception]


class Recorder:
    """Collects the records of steps and turns them into rows, one transfer for many steps."""

    def __init__(
        self,
        settings: FitSettings,
        world: World,
        run: RunFolder | None,
        on_failure: OnFailure,
        *,
        step: int,
        evaluated: int,
        on_row: Callable[[Row], object] | None = None,
    ) -> None:
        """Open the logs of a run that has made `step` steps; `on_row` is told on the first rank."""
        self._on_row = on_row if world.main else None
        self._settings = settings
        self._device = world.device(settings.device)
        self._on_failure = on_failure
        self._pending: list[StepRecord] = []
        self._logs: list[MetricsLog | TensorBoardLog] = []
        self._metrics: MetricsLog | None = None
        if run is not None and world.main:
            self._metrics = MetricsLog(run.metrics, step=step, evaluated=evaluated)
            self._logs.append(self._metrics)
            if settings.tensorboard and is_utf8(run.tensorboard):
                self._logs.append(TensorBoardLog(run.tensorboard, step=step))
        log = None if run is None else run.log
        self.progress = Progress(settings.total_steps, log=log, main=world.main)
        if run is not None and settings.tensorboard and not is_utf8(run.tensorboard):
            self.progress.say(
                "nothing is written for TensorBoard, which takes no folder whose name is not "
                "UTF-8; metrics.jsonl has every number"
            )
        self.last: dict[str, float] = {}  # numbers of the last step that was read

    def add(self, record: StepRecord, *, read: bool) -> None:
        """Keep a record, and read all that are waiting when told to."""
        self._pending.append(record)
        if read:
            self.read()

    def read(self) -> None:
        """Bring the waiting numbers to the host and write their rows.

        Raises:
            Exception: What `on_failure` makes of the first step that was not finite.
        """
        if not self._pending:
            return
        records, self._pending = self._pending, []
        table = torch.stack([record.values for record in records]).tolist()  # the one transfer
        rows: list[Row] = []
        for record, values in zip(records, table, strict=True):
            numbers = dict(zip(record.names, values, strict=True))
            bad = numbers.pop("bad")
            row = self._row(record.step, "train", {**numbers, "lr": record.rate})
            if bad:
                self._write(rows)
                raise self._on_failure(record, row)
            rows.append(row)
            self.last = {**numbers, "lr": record.rate}
        self._write(rows)
        waited = sum(record.waited for record in records)
        self.progress.update(rows[-1], self._memory(), waited)

    def add_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the row of an evaluation, and tell it."""
        row = self._row(step, "val", metrics)
        self._write([row])
        told = "  ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in metrics.items())
        self.progress.say(f"step {step}  validation  {told}")

    def sync(self) -> None:
        """Bring the rows to the disk, before a checkpoint promises their steps."""
        if self._metrics is not None:
            self._metrics.sync()

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs:
            log.close()
        self.progress.close()

    def _row(self, step: int, split: str, numbers: Mapping[str, float]) -> Row:
        samples = step * self._settings.global_batch
        size = self._settings.epoch_size
        epoch = samples / size if size else None
        place = {"step": step, "epoch": epoch, "samples_seen": samples, "split": split}
        return {**place, **numbers}

    def _write(self, rows: list[Row]) -> None:
        for log in self._logs:
            log.write(rows)
        if self._on_row is not None:
            for row in rows:
                self._on_row(dict(row))

    def _memory(self) -> int | None:
        if self._device.type != "cuda":
            return None
        return torch.cuda.max_memory_reserved(self._device)
