"""The fit loop: batches in, a trained task out, and nothing lost on the way.

It alone calls backward, clips, steps, logs, saves and stops. Which samples a step sees follows from
`samples_seen` and all chance inside a step from (seed, step, rank), so that a checkpoint holds no
random state and a resumed run goes on bitwise as if it had never stopped.
"""

import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import nn

from beit.engine.distribution import World, current_world, restarted
from beit.engine.ema import WeightAverage
from beit.engine.failure import Diverged, explained
from beit.engine.optimiser import optimiser_of, trainable
from beit.engine.protocol import (
    AT_WILL,
    NO_HOOKS,
    Batches,
    Evaluate,
    Evaluation,
    Hooks,
    MindsCutting,
    Prepare,
)
from beit.engine.recorder import Recorder
from beit.engine.run_folder import RunFolder
from beit.engine.settings import FitResult, FitSettings, promise_repeatable_products
from beit.engine.signals import StopNow, StoppedBySignal, StopSignal
from beit.engine.step import StepRecord, TrainingStep, compile_parts
from beit.engine.storage import OPTIMISER, Storage
from beit.errors import UserError
from beit.randomness import step_seed


def fit(  # noqa: PLR0913 - all but three by keyword
    task: nn.Module,
    batches: Batches,
    settings: FitSettings,
    *,
    run: RunFolder | None = None,
    prepare: Prepare | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    fingerprints: Mapping[str, str] | None = None,
    hooks: Hooks = NO_HOOKS,
) -> FitResult:
    """Train a task.

    Args:
        task: A module that fulfils `beit.engine.protocol.Task`; trained in place.
        batches: Gives this rank's micro-batches from a number of samples seen on, without end.
        settings: The numbers of the run.
        run: Where to log and save; None keeps nothing.
        prepare: Work on the device for each batch (augmentation), outside autocast and gradients.
        evaluate: Called every `evaluate_every` steps and at the end, on every rank, with the task
            in evaluation mode and holding the averaged weights if there are any. It must not
            leave anything changed. Its rows go to the log as split "val".
        resume: Go on from the newest sound checkpoint in the run folder, if there is one.
        fingerprints: What must be the same when resuming ("recipe", "data"); kept in checkpoints.
        hooks: Functions of the caller's that are called on the way, and the optimiser.

    Raises:
        UserError: The batch does not divide, the disk or memory is too small, or the run in the
            folder was made from something else.
        beit.errors.Interrupted: SIGTERM or Ctrl-C came; the state is saved.
        beit.engine.failure.Diverged: The loss or gradient was not finite; the step was not applied.
            Or the last step's update left weights that give no finite loss.
    """
    world = current_world()
    settings.micro_batch(world.size)
    resume = resume or (restarted() and run is not None)
    assert run is not None or not resume, "resuming needs a run folder"
    device = world.device(settings.device)
    with _deterministic(settings.deterministic), kept_generators(device):
        whole = _Run(task, settings, world, run, fingerprints or {}, hooks)
        return whole.train(batches, prepare, evaluate, resume)


class _Run:
    """The objects of one run and where it stands."""

    def __init__(
        self,
        task: nn.Module,
        settings: FitSettings,
        world: World,
        run: RunFolder | None,
        fingerprints: Mapping[str, str],
        hooks: Hooks,
    ) -> None:
        self.task = task
        self.hooks = hooks
        self.settings = settings
        self.world = world
        self.run = run
        self.device = world.device(settings.device)
        task.to(self.device)
        parameters = trainable(task)
        decay = settings.ema
        self.average = None if decay is None else WeightAverage(parameters, decay)
        self.optimiser = optimiser_of(task, settings, hooks.optimiser)
        self.storage = Storage(
            task,
            self.optimiser,
            self.average,
            world,
            run,
            keep=settings.keep,
            fingerprints={**fingerprints, OPTIMISER: type(self.optimiser).__name__},
            accepted=settings.accept_changed,
        )
        self.step = 0
        self.evaluated = 0  # the step of the last evaluation
        self.stop_reason: str | None = None
        self.metrics: dict[str, float] = {}
        self.validation: dict[str, float] = {}

    @property
    def samples_seen(self) -> int:
        return self.step * self.settings.global_batch

    @property
    def finished(self) -> bool:
        return self.step >= self.settings.total_steps or self.stop_reason is not None

    def train(
        self, batches: Batches, prepare: Prepare | None, evaluate: Evaluate | None, resume: bool
    ) -> FitResult:
        """Go from where the run stands to its end."""
        self.storage.prepare(self.settings.models)
        notes = self._resume() if resume else []
        if self.settings.compile:
            compile_parts(self.task)
        self.task.train()
        with ExitStack() as stack:
            self.stop = stack.enter_context(StopSignal(main=self.world.main))
            self.recorder = self._recorder()
            stack.callback(self.recorder.close)
            for note in notes:
                self.recorder.progress.say(note)
            make_step = self._make_step(prepare)
            iterator = iter(()) if self.finished else batches(self.samples_seen)
            stack.callback(getattr(iterator, "close", lambda: None))
            self._loop(make_step, iterator, evaluate)
            self.recorder.progress.remark()
        return FitResult(
            step=self.step,
            samples_seen=self.samples_seen,
            stop_reason=self.stop_reason,
            metrics=self.metrics,
            validation=self.validation,
            average=None if self.average is None else dict(self.average.tensors),
        )

    def _recorder(self) -> Recorder:
        return Recorder(
            self.settings,
            self.world,
            self.run,
            self._fail,
            step=self.step,
            evaluated=self.evaluated,
            on_row=self.hooks.on_row,
        )

    def _fail(self, record: StepRecord, row: dict[str, Any]) -> Diverged:
        samples = (record.step - 1) * self.settings.global_batch
        state = {**self._state(), "samples_seen": samples}
        return self.storage.fail(record, row, state, after=False)

    def _make_step(self, prepare: Prepare | None) -> TrainingStep:
        return TrainingStep(
            self.task,
            self.optimiser,
            self.average,
            self.settings,
            self.world,
            self.device,
            prepare=prepare,
        )

    def _loop(
        self, make_step: TrainingStep, iterator: Iterator[Any], evaluate: Evaluate | None
    ) -> None:
        """Steps, evaluations and saves, in an order that a kill anywhere cannot upset."""
        self._evaluate_if_due(evaluate)  # the one that an interruption had broken off
        while not self.finished:
            record = self._step(make_step, iterator)
            self.step += 1
            if self.hooks.after_step is not None:
                self.hooks.after_step(self.task, self.step)
            look = not make_step.deferred or self.step % self.settings.log_every == 0
            self.recorder.add(record, read=look)
            if self.step == self.settings.total_steps:
                self._look_after_the_last(make_step, record)
            self._evaluate_if_due(evaluate)
            stopping = self.world.any_host(self.stop.requested)
            if stopping or self.finished or self.step % self.settings.save_every == 0:
                saved = self._save()
                if stopping and not self.finished:
                    self._leave(saved)

    def _step(self, make_step: TrainingStep, iterator: Iterator[Any]) -> StepRecord:
        try:
            return make_step(self.step, iterator)
        except Exception as error:
            assert not isinstance(error, StopIteration), "batches must not end"
            complaint = explained(
                error,
                self.settings,
                step=self.step + 1,
                world_size=self.world.size,
                device=self.device,
                cutting=self.task.cutting() if isinstance(self.task, MindsCutting) else AT_WILL,
            )
            if complaint is not None:
                raise complaint from error
            if self.stop.requested and self.world.size == 1:
                # Ctrl-C reached a loader's process too. The weights are those after the last whole
                # step, so leave in order.
                make_step.leave_broken_off()
                self._leave(self._save())
            raise

    def _look_after_the_last(self, make_step: TrainingStep, record: StepRecord) -> None:
        """See that the last update left weights that give a number, as the next step would."""
        self.recorder.read()
        with self._eager():
            loss = float(make_step.loss_after())
        if self.world.any_host(not math.isfinite(loss)):
            row = {"step": self.step, **self.recorder.last, "loss_after": loss}
            raise self.storage.fail(record, row, self._state(), after=True)

    def _eager(self) -> AbstractContextManager[Any]:
        """Nothing is compiled for what is looked at seldom: that takes longer than it saves."""
        if not self.settings.compile:
            return nullcontext()
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance

    def _evaluate_if_due(self, evaluate: Evaluate | None) -> None:
        every, last = self.settings.evaluate_every, self.step == self.settings.total_steps
        due = every > 0 and (last or self.step % every == 0)
        if evaluate is None or not due or self.step in (0, self.evaluated):
            return
        self.recorder.read()
        self.recorder.progress.pause()
        try:
            found = self._evaluate(evaluate)
        except StopNow:
            self._leave(self._save())
        self.evaluated = self.step
        self.validation = dict(found.metrics)
        self.recorder.add_validation(self.step, self.validation)
        if found.warning:
            self.recorder.progress.say(f"warning at step {self.step}: {found.warning}")
        self.stop_reason = self.world.tell(found.stop_reason or "") or None
        if self.stop_reason:
            self.recorder.progress.say(f"stopping at step {self.step}: {self.stop_reason}")

    def _evaluate(self, evaluate: Evaluate) -> Evaluation:
        torch.manual_seed(step_seed(self.settings.seed, self.step, self.world.rank, "evaluate"))
        self.task.eval()
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                if self.average is not None:
                    stack.enter_context(self.average.swapped_in())
                stack.enter_context(self._eager())
                if self.world.size == 1:  # several ranks can only stop together, after it
                    stack.enter_context(self.stop.breakable())
                return evaluate(self.task, self.step)
        finally:
            self.task.train()

    def _save(self) -> str:
        self.recorder.read()
        self.recorder.sync()
        self.recorder.progress.pause()
        return self.storage.save(self.step, self._state())

    def _state(self) -> dict[str, Any]:
        self.metrics = self.recorder.last or self.metrics
        return {
            "samples_seen": self.samples_seen,
            "compiled": self.settings.compile,
            "evaluated": self.evaluated,
            "stop_reason": self.stop_reason,
            "metrics": self.metrics,
            "validation": self.validation,
        }

    def _leave(self, saved: str) -> NoReturn:
        name = self.stop.received.name if self.stop.received else "a signal elsewhere"
        text = f"stopped by {name} after step {self.step} of {self.settings.total_steps}; {saved}"
        hint = "" if self.run is None else ": go on with the same command and --resume"
        number = self.stop.received or signal.SIGTERM
        raise StoppedBySignal(text + hint, int(number))

    def _resume(self) -> list[str]:
        """Take the newest sound checkpoint; return what the user should be told."""
        loaded = self.storage.load()
        if loaded is None:
            return ["no checkpoint yet: beginning at step 0"]
        state = loaded.snapshot.state
        self.step = loaded.snapshot.step
        if state["samples_seen"] != self.samples_seen:
            raise UserError(
                f"the run was made with {state['samples_seen'] // max(1, self.step)} pictures a "
                f"step and would go on with {self.settings.global_batch}: use the old batch"
            )
        self.evaluated = state["evaluated"]
        self.stop_reason = state["stop_reason"]
        self.metrics, self.validation = state["metrics"], state["validation"]
        notes = [f"checkpoint {name} is refused: {reason}" for name, reason in loaded.refused]
        fell_back = ", the newest one that is sound" if notes else ""
        compiled = self.settings.compile
        if state.get("compiled", compiled) != compiled:
            now = "is compiled and was not" if compiled else "was compiled and is not"
            notes.append(f"the step {now} before: from here on results are rounded otherwise")
        return [*notes, f"going on from {loaded.path.name}{fell_back}"]


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Bitwise repeatable kernels for a while.

    Nothing is touched where they are not wanted: torch imports its compiler for it, which takes a
    second, and after a Ctrl-C in the midst of an import cannot be imported again.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    promise_repeatable_products()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=lenient)


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Leave the caller's random state as it was: `torch.manual_seed` sets the device's, too."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
