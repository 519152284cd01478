from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from beit.engine.distribution import World
from beit.engine.fit import fit
from beit.engine.optimiser import build_optimiser, parameter_groups, trainable
from beit.engine.protocol import Evaluation, StepContext, StepOutput
from beit.engine.settings import FitSettings
from beit.engine.step import TrainingStep
from beit.errors import UserError
from engine.engine_toy import SETTINGS, ToyBatch, ToyTask, hooked, toy_batches

PLAIN = replace(SETTINGS, total_steps=6, evaluate_every=0)


def trained(settings: FitSettings) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    task = ToyTask(chance=False)
    result = fit(task, toy_batches(settings), settings)
    return {k: v for k, v in task.state_dict().items() if k != "count"}, result.metrics


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_changes_nothing(accumulate: int) -> None:
    """Micro-batches weigh what they hold, though their weights differ."""
    whole, numbers = trained(PLAIN)
    parts, others = trained(replace(PLAIN, accumulate=accumulate))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
    root = numbers.pop("root")  # a mean of roots is another number
    assert others.pop("root") != root
    assert others == pytest.approx(numbers, rel=1e-5)


@pytest.mark.parametrize("clip", [None, 0.1, 3.0, 1e3])
def test_steps_equal_the_obvious_ones(clip: float | None) -> None:
    """By torch's own loss, clipping and AdamW, and averages by hand.

    Several steps, because AdamW's first one is blind to the length of the gradient.
    """
    settings = replace(PLAIN, total_steps=4, warmup_steps=0, minimum_rate=1e-2, clip=clip)
    ours = ToyTask(chance=False)
    parts = replace(settings, accumulate=4)
    result = fit(ours, toy_batches(parts), parts)
    task = ToyTask(chance=False)
    parameters = {n: p for n, p in task.named_parameters() if p.requires_grad}
    averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    decayed = [parameters["net.3.weight"], parameters["table"]]
    others = [p for p in parameters.values() if all(p is not d for d in decayed)]
    groups = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-2)
    norms = []
    for step, batch in enumerate(islice(toy_batches(settings)(0), 4)):
        loss = task(batch, StepContext(settings.seed, step, 4, range(8))).loss
        optimiser.zero_grad()
        loss.backward()
        limit = torch.inf if clip is None else clip
        norms.append(float(nn.utils.clip_grad_norm_(parameters.values(), limit)))
        optimiser.step()
        for name, parameter in parameters.items():
            averages[name].lerp_(parameter.detach(), 1 - (1 + step) / (10 + step))
    assert 0.1 < min(norms) < 3.0 < max(norms) < 1e3
    assert result.metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert result.metrics["gradient_norm"] == pytest.approx(norms[-1], rel=1e-5)
    assert result.average is not None
    for name, parameter in parameters.items():
        found = ours.get_parameter(name).detach()
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(result.average[name], averages[name], rtol=1e-4, atol=1e-6)


def test_chance_is_a_function_of_seed_and_step() -> None:
    settings = replace(SETTINGS, evaluate_every=0)
    rows = []
    for _ in range(2):
        torch.manual_seed(int(torch.randint(1 << 30, ())))  # whatever the caller did
        task = ToyTask()
        rows.append(fit(task, toy_batches(settings), settings).metrics)
    other = replace(settings, seed=6)
    task = ToyTask()
    assert rows[0] == rows[1]
    assert fit(task, toy_batches(settings), other).metrics != rows[0]


class Drawing(ToyTask):
    """Notes what the default generator gives first in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, batch: ToyBatch, context: StepContext) -> StepOutput:
        self.drawn.append(float(torch.rand(())))
        return super().forward(batch, context)


def test_no_two_forward_passes_have_the_same_chance() -> None:
    """Else micro-batches or ranks would drop the same features, which averages nothing out."""
    settings = replace(PLAIN, accumulate=4)

    def drawn(rank: int) -> list[float]:
        task = Drawing()
        groups = parameter_groups(trainable(task), weight_decay=0.0, undecayed=frozenset())
        optimiser = build_optimiser(groups, betas=(0.9, 0.99), eps=1e-8)
        world, device = World(rank), torch.device("cpu")
        make_step = TrainingStep(task, optimiser, None, settings, world, device)
        for done in range(3):
            make_step(done, toy_batches(settings)(8 * done))
        return task.drawn

    first, second = drawn(0), drawn(1)
    assert len(set(first + second)) == 2 * 3 * 4
    assert drawn(0) == first


def test_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    task = ToyTask()
    torch.manual_seed(3)
    fit(task, toy_batches(PLAIN), PLAIN)
    assert torch.equal(torch.rand(2), expected)


class Watching(ToyTask):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[StepContext, torch.dtype, bool]] = []

    def forward(self, batch: ToyBatch, context: StepContext) -> StepOutput:
        dtype = self.net(torch.zeros(1, 4)).dtype
        self.seen.append((context, dtype, self.training))
        return super().forward(batch, context)


def test_context_precision_and_mode() -> None:
    task = Watching()
    task.eval()
    settings = replace(PLAIN, total_steps=2, accumulate=2, precision="bfloat16")
    fit(task, toy_batches(settings), settings)
    assert [(c.step, c.rows) for c, _, _ in task.seen] == [
        (0, range(4)),
        (0, range(4, 8)),
        (1, range(4)),
        (1, range(4, 8)),
        (1, range(4, 8)),  # looked at once more after the last step
    ]
    assert all(c.total_steps == 2 and c.seed == 5 for c, _, _ in task.seen)
    assert all(dtype == torch.bfloat16 for _, dtype, _ in task.seen)
    assert [training for _, _, training in task.seen] == [True] * 4 + [False]


def test_what_is_measured_is_the_averaged_task_in_evaluation_mode() -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(task: nn.Module, step: int) -> Evaluation:
        assert not task.training and not torch.is_grad_enabled()
        seen.append({name: value.detach().clone() for name, value in task.named_parameters()})
        return Evaluation({})

    task = ToyTask()
    settings = replace(PLAIN, evaluate_every=6)
    result = fit(task, toy_batches(settings), settings, evaluate=evaluate)
    assert result.average is not None and len(seen) == 1
    for name, value in result.average.items():
        assert torch.equal(seen[0][name], value)
        assert not torch.equal(task.get_parameter(name), value), "the run goes on with its own"


def test_no_update_reaches_the_frozen() -> None:
    task = ToyTask()
    before = task.frozen.weight.clone()
    result = fit(task, toy_batches(PLAIN), PLAIN)
    assert torch.equal(task.frozen.weight, before)
    assert result.average is not None and "frozen.weight" not in result.average


def test_prepare_runs_without_gradients() -> None:
    modes = []

    def prepare(batch: object) -> object:
        modes.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return batch

    settings = replace(PLAIN, total_steps=1, precision="bfloat16")
    fit(ToyTask(), toy_batches(settings), settings, prepare=prepare)
    assert modes == [(False, False)]


class Inside(nn.Module):
    """A network in a class of its own: torch does not compile the call of its own containers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)


# Importing torch's compiler warns of a part of torch that goes.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_run_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task and preparation are compiled, evaluations are not: their batches have other sizes."""
    compiled: list[str] = []
    looks: list[int] = []  # not empty while an evaluation runs

    def as_it_is(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        learns = any("linear" in str(node.target) for node in graph.graph.nodes)
        compiled.append("evaluation" if looks else "network" if learns else "preparation")
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda called: compile_(called, backend=as_it_is))
    results = []

    def prepare(batch: ToyBatch) -> ToyBatch:
        return replace(batch, x=2 * batch.x)

    def evaluate(task: nn.Module, step: int) -> Evaluation:
        assert isinstance(task, ToyTask)
        looks.append(step)
        score = float(task.net(torch.ones(3, 4)).sum())
        looks.clear()
        return Evaluation({"score": score})

    looking = replace(PLAIN, evaluate_every=3)
    for settings in (looking, replace(looking, compile=True)):
        task = ToyTask(chance=False)
        task.net = Inside(task.net)  # type: ignore[assignment] # the toy's is a Sequential
        batches = toy_batches(settings)
        found = fit(task, batches, settings, prepare=prepare, evaluate=evaluate)
        results.append((found.metrics, found.validation, task.state_dict()))
    assert set(compiled) == {"network", "preparation"}
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_learns() -> None:
    settings = replace(PLAIN, total_steps=300, learning_rate=3e-2, clip=None)
    task = ToyTask(chance=False)
    first: list[float] = []

    def hook(done: int) -> None:
        if not first:
            batch = next(toy_batches(settings)(0))
            first.append(float(task(batch, StepContext(0, 0, 1, range(8))).loss.detach()))

    result = fit(task, hooked(toy_batches(settings), settings, hook), settings)
    assert result.metrics["loss"] < 0.05 * first[0]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    settings = replace(PLAIN, accumulate=3)
    with pytest.raises(UserError, match="multiple of 3"):
        fit(ToyTask(), lambda seen: iter(()), settings)


@pytest.mark.parametrize(
    ("field", "value"), [("keep", 1), ("total_steps", 0), ("ema", 1.0), ("clip", 0.0)]
)
def test_settings_that_cannot_be_meant(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        replace(SETTINGS, **{field: value})
