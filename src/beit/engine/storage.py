"""Saving and resuming a run on any number of ranks: rank 0 writes, all agree on what came of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer

from beit.engine.checkpoints import BadCheckpoint, Checkpoints, Loaded, Snapshot, read_snapshot
from beit.engine.distribution import World
from beit.engine.ema import WeightAverage
from beit.engine.failure import (
    Diverged,
    diverged_after_message,
    diverged_message,
    dump_batch,
    dump_state,
)
from beit.engine.run_folder import RunFolder
from beit.engine.state import expected_size, model_tensors, restore, take_snapshot
from beit.engine.step import StepRecord
from beit.errors import UserError

_Result = TypeVar("_Result")
OPTIMISER = "optimiser"  # among the fingerprints


class Storage:
    """The checkpoints of a run, and its dump when it fails."""

    def __init__(
        self,
        task: nn.Module,
        optimiser: Optimizer,
        average: WeightAverage | None,
        world: World,
        run: RunFolder | None,
        *,
        keep: int,
        fingerprints: Mapping[str, str],
        accepted: frozenset[str] = frozenset(),
    ) -> None:
        self._task = task
        self._optimiser = optimiser
        self._average = average
        self._world = world
        self._run = run
        self._fingerprints = dict(fingerprints)
        self._accepted = accepted  # fingerprints that may differ
        self._checkpoints = None if run is None else Checkpoints(run.checkpoints, keep)

    def prepare(self, models: Sequence[str] = ()) -> None:
        """Make the folder, clear what killed saves left, and see that there is room.

        Args:
            models: Weights that the run writes beside the checkpoints, as paths in its folder.
        """
        checkpoints = self._checkpoints
        if checkpoints is None:
            return
        size = expected_size(self._task, self._average is not None)
        beside = self._unwritten(models) * sum(v.nbytes for v in model_tensors(self._task).values())

        def check() -> None:
            checkpoints.prepare()
            checkpoints.require_space(size, beside)

        self._on_main(check)

    def _unwritten(self, models: Sequence[str]) -> int:
        """Models that are not there yet; one is written beside itself before it is replaced."""
        assert self._run is not None
        there = [(self._run.path / model).is_file() for model in models]
        return max(1, there.count(False))

    def save(self, step: int, state: Mapping[str, Any]) -> str:
        """Save the run as it is; return a phrase for the user that says where."""
        checkpoints = self._checkpoints
        if checkpoints is None:
            return "nothing is saved, because the run has no folder"
        snapshot = self._snapshot(step, state)
        self._on_main(lambda: checkpoints.save(snapshot))
        return f"the state is saved in {checkpoints.path(step)}"

    def load(self) -> Loaded | None:
        """Put the newest sound checkpoint back into the run, the same one on every rank.

        Raises:
            UserError: None is sound, or it is of another run.
        """
        checkpoints = self._checkpoints
        assert checkpoints is not None, "resuming needs a run folder"
        loaded = self._on_main(checkpoints.load)
        chosen = self._world.tell("" if loaded is None else str(loaded.snapshot.step))
        if not chosen:
            return None
        if loaded is None:  # not rank 0
            path = checkpoints.path(int(chosen))
            try:
                loaded = Loaded(path, read_snapshot(path))
            except (BadCheckpoint, OSError) as error:
                raise UserError(
                    f"rank {self._world.rank} cannot read {path} ({error}): "
                    "all machines must see the same run folder"
                ) from error
        self._require_same(loaded)
        try:
            restore(loaded.snapshot, self._task, self._optimiser, self._average)
        except ValueError as error:
            raise UserError(
                f"{loaded.path} does not fit this run: {error}; "
                "go on with the recipe the run was made with"
            ) from error
        return loaded

    def fail(
        self, record: StepRecord, row: dict[str, Any], state: Mapping[str, Any], *, after: bool
    ) -> Diverged:
        """Dump a step that was not finite, or after which nothing is; return the error to raise."""
        try:
            dump = self._dump(record, row, state, after=after)
        except (OSError, SafetensorError) as error:  # what went wrong first is to be told
            dump = str(error)
        message = diverged_after_message if after else diverged_message
        return Diverged(message(row, dump, self._newest()))

    def _dump(
        self, record: StepRecord, row: dict[str, Any], state: Mapping[str, Any], *, after: bool
    ) -> Path | str:
        """Where the dump is; empty where there is no run folder."""
        if self._run is None:
            return ""
        folder = self._run.failure(record.step)
        dump_batch(folder, self._world.rank, record.identities)
        if self._world.main:
            snapshot = self._snapshot(record.step - (not after), state)
            dump_state(folder, row, snapshot, "after" if after else "before")
        return folder

    def _newest(self) -> str:
        steps = [] if self._checkpoints is None else self._checkpoints.steps()
        return f"the last checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint"

    def _snapshot(self, step: int, state: Mapping[str, Any]) -> Snapshot:
        whole = {**state, "fingerprints": self._fingerprints}
        return take_snapshot(self._task, self._optimiser, self._average, step, whole)

    def _require_same(self, loaded: Loaded) -> None:
        before = loaded.snapshot.state["fingerprints"]
        for name, value in self._fingerprints.items():
            found = before.get(name)
            if found != value and name not in self._accepted:
                raise UserError(
                    f"the {name} is not the one that {loaded.path} was made with "
                    f"({found} then, {value} now): go on with that, or choose another --out"
                )

    def _on_main(self, action: Callable[[], _Result]) -> _Result | None:
        """Act on rank 0 only; a UserError there is raised on every rank."""
        result, complaint = None, ""
        if self._world.main:
            try:
                result = action()
            except UserError as error:
                complaint = str(error)
        complaint = self._world.tell(complaint)
        if complaint:
            raise UserError(complaint)
        return result
