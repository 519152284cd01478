"""A run folder as it is read again: its recipe, its metrics, its pictures."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from beit.data.sources.opening import Data, Source, open_source
from beit.errors import UserError
from beit.files import read_json_object
from beit.recipes.downstream_models import Recipe
from beit.recipes.recipe_files import recipe_in
from beit.report.metrics import Row, read_metrics

EVALUATION = "evaluation.json"  # a fine-tuning's last measurement, class by class
HANDED_OVER = "handed_over"  # in source.json: the pictures came from Python, and lie nowhere


@dataclass
class RunFiles:
    """A run folder as it is read for the report."""

    path: Path
    asked_data: Data | None = None

    def __post_init__(self) -> None:
        if not (self.path / "recipe.yaml").is_file():
            raise UserError(f"{self.path} is not a run folder: it has no recipe.yaml")
        self.notes: list[str] = []

    @cached_property
    def recipe_text(self) -> str:
        """The recipe as it is written."""
        return (self.path / "recipe.yaml").read_text(encoding="utf-8")

    @cached_property
    def recipe(self) -> Recipe:
        """What the run was asked to do."""
        return recipe_in(self.path / "recipe.yaml")

    @cached_property
    def metrics(self) -> list[Row]:
        """The rows of metrics.jsonl, none when there is no such file yet."""
        file = self.path / "metrics.jsonl"
        return read_metrics(file) if file.is_file() else []

    @cached_property
    def data(self) -> Data:
        """Where the pictures are, or what was handed over for them."""
        return self.asked_data or str(self._noted.get("data", "unknown"))

    @cached_property
    def _noted(self) -> dict[str, Any]:
        file = self.path / "source.json"
        return read_json_object(file) if file.is_file() else {}

    @cached_property
    def data_fingerprint(self) -> str:
        """Of the pictures to train on, wherever they were; empty where it was not written down."""
        return str(self._noted.get("fingerprint", ""))

    @cached_property
    def source(self) -> Source | None:
        """Pictures to show: the validation part, or the training part when there is no other."""
        if not self.asked_data and self._noted.get(HANDED_OVER):
            self.notes.append(
                f"Without pictures: they were handed over from Python, as {self.data}; give them "
                "to beit.write_report once more."
            )
            return None
        try:
            source = open_source(self.data, "val")
            return source if len(source) else open_source(self.data, "train")
        except UserError as error:
            if self.asked_data:
                raise
            self.notes.append(f"Without pictures: {error}. Give them with --data.")
            return None

    @property
    def finished(self) -> bool:
        """Whether the final model is there."""
        return (self.path / "config.json").is_file()
