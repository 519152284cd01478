"""A toy task for the engine: a small network on vectors that are a pure function of their index.

Its children run in processes of their own, forked from a server that has torch imported, so that
they can be killed by the dozen.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from beit.batch import Travels
from beit.engine.checkpoints import Checkpoints, Snapshot
from beit.engine.distribution import current_world
from beit.engine.fit import fit
from beit.engine.protocol import Batches, Evaluation, StepContext, StepOutput
from beit.engine.run_folder import RunFolder
from beit.engine.settings import FitResult, FitSettings
from beit.errors import Interrupted
from beit.randomness import epoch_order, sample_generator

EPOCH = 40  # samples; five steps of eight

SETTINGS = FitSettings(
    total_steps=17,
    global_batch=8,
    learning_rate=1e-2,
    minimum_rate=1e-4,
    warmup_steps=3,
    clip=1.0,
    ema=0.9,
    save_every=4,
    keep=2,
    evaluate_every=6,
    epoch_size=EPOCH,
    tensorboard=False,
    seed=5,
)


@dataclass(frozen=True)
class ToyBatch(Travels):
    index: Tensor  # (B,)
    epoch: Tensor  # (B,)
    x: Tensor  # (B, 4)
    weight: Tensor  # (B,)


class ToyTask(nn.Module):
    """Predicts the sum of a vector; with draws by row, dropout, and a buffer that counts.

    Without `chance` the draws by row remain, which do not change with accumulation or ranks.
    """

    count: Tensor

    def __init__(self, *, chance: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.chance = chance
        self.net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.table = nn.Parameter(torch.zeros(3, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("count", torch.zeros(()))
        if not chance:
            self.net[2] = nn.Identity()

    def forward(self, batch: ToyBatch, context: StepContext) -> StepOutput:
        x = batch.x
        if self.training:
            x = x + 0.1 * context.uniform(4, "noise", x.device)
            self.count += self.chance
        errors = (self.net(x)[:, 0] + self.table.sum() - batch.x.sum(1)).square()
        weight = batch.weight.sum()
        loss = (errors * batch.weight).sum() / weight
        return StepOutput(loss, weight, {"root": loss.detach().sqrt()})

    def undecayed_parameters(self) -> frozenset[str]:
        return frozenset({"net.0.weight"})


def toy_batches(settings: FitSettings, *, poison: int | None = None) -> Batches:
    """This rank's micro-batches; the sample at global position `poison` holds a NaN."""
    world = current_world()
    micro = settings.micro_batch(world.size)
    first = world.rank * settings.accumulate * micro

    def batches(seen: int) -> Iterator[ToyBatch]:
        while True:
            for number in range(settings.accumulate):
                start = seen + first + number * micro
                yield _batch(settings.seed, range(start, start + micro), poison)
            seen += settings.global_batch

    return batches


def _batch(seed: int, positions: range, poison: int | None) -> ToyBatch:
    indices, epochs, rows, weights = [], [], [], []
    for position in positions:
        epoch, place = divmod(position, EPOCH)
        index = int(epoch_order(seed, epoch, EPOCH)(torch.tensor([place]).numpy())[0])
        row = torch.from_numpy(sample_generator(seed, epoch, index, "x").standard_normal(4))
        rows.append(row * float("nan") if position == poison else row)
        indices.append(index)
        epochs.append(epoch)
        weights.append(1.0 + index % 3)
    x = torch.stack(rows).float()
    return ToyBatch(torch.tensor(indices), torch.tensor(epochs), x, torch.tensor(weights))


def toy_evaluation(task: nn.Module, step: int) -> Evaluation:
    assert isinstance(task, ToyTask) and not task.training
    batch = _batch(0, range(8), None)
    output = task(batch, StepContext(0, step, 1, range(8)))
    return Evaluation({"loss": float(output.loss)})


Hook = Callable[[int], None]  # called with the number of steps done before each micro-batch


def hooked(batches: Batches, settings: FitSettings, hook: Hook) -> Batches:
    def iterate(seen: int) -> Iterator[Any]:
        done = seen // settings.global_batch
        for number, batch in enumerate(batches(seen)):
            hook(done + number // settings.accumulate)
            yield batch

    return iterate


def run_toy(
    folder: Path,
    settings: FitSettings = SETTINGS,
    *,
    hook: Hook | None = None,
    chance: bool = True,
    poison: int | None = None,
    task: ToyTask | None = None,
) -> FitResult:
    """Train in the folder, going on with what is there."""
    batches = toy_batches(settings, poison=poison)
    if hook is not None:
        batches = hooked(batches, settings, hook)
    main = current_world().main
    with RunFolder.open(folder, resume=True, main=main) as run:
        return fit(
            task or ToyTask(chance=chance),
            batches,
            settings,
            run=run,
            evaluate=toy_evaluation,
            resume=True,
            fingerprints={"data": "toy", "recipe": "toy"},
        )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def hash_of(folder: Path) -> str:
    """All that a run leaves: every byte of its last checkpoint and of its metrics."""
    digest = hashlib.sha256((folder / "metrics.jsonl").read_bytes())
    newest = max((folder / "checkpoints").iterdir())
    for path in sorted(newest.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class Killer:
    """Ends this process with SIGKILL at the n-th call to the system inside a save."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0

    def tick(self, torn: Path | None = None) -> None:
        self.calls += 1
        if self.calls == self.at:
            if torn is not None:
                os.truncate(torn, torn.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Wrap what a save is made of; each writes, renames or removes."""
        from beit.engine import checkpoints

        for name in ("fsync", "rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, self._before(getattr(os, name)))
        whole = save_file

        def torn(tensors: Any, path: Path) -> None:
            unfinished = path.with_name(".tmpUNpKz1")  # safetensors renames it at the end
            whole(tensors, unfinished)
            self.tick(unfinished)
            unfinished.rename(path)
            self.tick(path)

        setattr(checkpoints, "save_file", torn)  # noqa: B010

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.tick()
            return function(*args, **options)

        return call


def toy_child(folder: str, plan: dict[str, Any]) -> None:
    """The body of a child: train as the plan says, and leave with the engine's exit status."""
    torch.set_num_threads(1)
    settings = replace(SETTINGS, **plan.get("settings", {}))
    if "kill_at_call" in plan:
        Killer(plan["kill_at_call"]).install()

    def hook(done: int) -> None:
        if done == plan.get("signal_at_step"):
            os.kill(os.getpid(), plan["signal"])

    try:
        run_toy(Path(folder), settings, hook=hook)
    except Interrupted as stop:
        sys.exit(128 + int(getattr(stop, "signal", 0)))


def toy_snapshot(step: int) -> Snapshot:
    """A checkpoint of many kinds of tensors."""
    torch.manual_seed(step)
    model = {"w": torch.randn(6, 5), "b": torch.randn(3).bfloat16(), "n": torch.tensor(step)}
    wide = torch.randn(4, 4).t()  # not contiguous
    tensors = {"model": model, "optimiser": {"exp_avg.w": wide}, "average": {"w": model["w"] * 2}}
    return Snapshot(step, tensors, {"samples_seen": step * 8, "fingerprints": {"data": "x"}})


def save_and_die(root: str) -> None:
    """The body of a child: in one folder after another, save twice, killed a call later each time.

    Ends when a save is no longer reached by the kill.
    """
    torch.set_num_threads(1)
    for at in range(1, 200):
        store = Checkpoints(Path(root, str(at), "checkpoints"))
        store.prepare()
        for step in (1, 2):
            store.save(toy_snapshot(step))
        child = os.fork()
        if child == 0:
            Killer(at).install()
            for step in (3, 4):
                store.save(toy_snapshot(step))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


def in_child(function: Callable[..., None], *arguments: Any) -> int:
    """Run in a process of its own; its exit code, negative for the signal that ended it."""
    process = start_child(function, *arguments)
    process.join(60)
    assert process.exitcode is not None, "the child hangs"
    return int(process.exitcode)


def start_child(function: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "engine.engine_toy"])  # torch is imported once
    process = context.Process(target=function, args=arguments)
    path = os.environ.get("PYTHONPATH")
    places = [str(Path(__file__).parents[1]), *filter(None, [path])]
    os.environ["PYTHONPATH"] = os.pathsep.join(places)  # where the server finds this file
    try:
        process.start()
    finally:
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path
    return process
