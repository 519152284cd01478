"""Keeping the best model of a run, and stopping when nothing gets better."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from beit.commands.assembly.leftovers import BEST, replace_model
from beit.commands.assembly.stage import Stage
from beit.engine.protocol import Evaluation
from beit.files import read_json_object
from beit.report.metrics import read_metrics

Measure = Callable[[nn.Module], dict[str, float]]
Save = Callable[[Path, nn.Module, dict[str, object]], None]


class BestWatch:
    """Measures at every evaluation, saves what beats all before, and gives up after a while.

    What was best so far is read from the run's own metrics, so that a resumed run keeps the same
    model and stops at the same step as one that was never interrupted.

    Args:
        stage: The run.
        key: The metric that is to rise.
        measure: Metrics of a task in evaluation mode; called on every rank.
        save: Writes the model into a folder, with facts for its config.json.
        patience: Evaluations without a better one before the run stops; None never stops.
    """

    def __init__(
        self, stage: Stage, key: str, measure: Measure, save: Save, patience: int | None
    ) -> None:
        self.stage, self.key, self.patience = stage, key, patience
        self._measure, self._save = measure, save
        self._values: list[float] | None = None

    def __call__(self, task: nn.Module, step: int) -> Evaluation:
        """One evaluation; saving is the first rank's."""
        metrics = self._measure(task)
        if not self.stage.world.main:
            return Evaluation(metrics)
        if self._values is None:
            self._values = self._before(step)
        value = metrics[self.key]
        if value > max(self._values, default=float("-inf")):
            facts: dict[str, object] = {"step": step, self.key: value}
            replace_model(self.folder, lambda folder: self._save(folder, task, facts))
        self._values.append(value)
        return Evaluation(metrics, self._reason())

    @property
    def folder(self) -> Path:
        """Where the best model is."""
        return self.stage.run.path / BEST

    def best(self) -> dict[str, object] | None:
        """The step and the value of the best model, and where it is; None before any."""
        file = self.folder / "config.json"
        if not file.is_file():
            return None
        config = read_json_object(file)
        facts = {name: config[name] for name in ("step", self.key)}
        return {**facts, "model": str(self.stage.request.out / BEST)}

    def _before(self, step: int) -> list[float]:
        file = self.stage.run.metrics
        rows = read_metrics(file) if file.is_file() else []
        return [
            float(row[self.key])
            for row in rows
            if row["split"] == "val" and row["step"] < step and self.key in row
        ]

    def _reason(self) -> str | None:
        assert self._values
        best = max(range(len(self._values)), key=self._values.__getitem__)  # the first of equals
        since = len(self._values) - 1 - best
        if self.patience is None or since < self.patience:
            return None
        return f"no better {self.key} than {self._values[best]:.4f} in the last {since} evaluations"
