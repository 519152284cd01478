from typing import Any

import pytest
import torch
from torch import nn

from beit.engine.ema import WeightAverage, average_decay
from beit.engine.optimiser import (
    build_optimiser,
    optimiser_of,
    optimiser_state,
    parameter_groups,
    restore_optimiser,
    set_rate,
    trainable,
)
from beit.engine.state import restore, take_snapshot
from beit.errors import UserError
from engine.engine_toy import SETTINGS, ToyTask


def test_who_decays() -> None:
    task = ToyTask()
    groups = parameter_groups(
        trainable(task), weight_decay=0.05, undecayed=task.undecayed_parameters()
    )
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay == {
        "net.0.weight": 0.0,  # named by the task
        "net.0.bias": 0.0,
        "net.3.weight": 0.05,
        "net.3.bias": 0.0,
        "table": 0.05,  # a table of two dimensions decays
    }


def test_rates_scale_by_name() -> None:
    task = ToyTask()
    groups = parameter_groups(
        trainable(task), weight_decay=0.0, undecayed=frozenset(), rate_scales={"table": 0.25}
    )
    optimiser = build_optimiser(groups, betas=(0.9, 0.999), eps=1e-8)
    set_rate(optimiser, 0.4)
    rates = {n: g["lr"] for g in optimiser.param_groups for n in g["names"]}
    assert rates["table"] == pytest.approx(0.1) and rates["net.0.weight"] == 0.4
    with pytest.raises(AssertionError):
        parameter_groups({}, weight_decay=0, undecayed=frozenset(), rate_scales={"tabel": 1.0})


def test_shared_parameters_appear_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert sorted(trainable(model)) == ["0.bias", "0.weight", "1.bias"]


def test_update_equals_adamw_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    groups = parameter_groups({"p": parameter}, weight_decay=0.1, undecayed=frozenset())
    optimiser = build_optimiser(groups, betas=(0.9, 0.99), eps=1e-8)
    value, mean, square = parameter.detach().clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for step in range(1, 4):
        gradient = torch.tensor([[0.5, -1.0]], dtype=torch.float64) * step
        parameter.grad = gradient.clone()
        set_rate(optimiser, 0.01 * step)
        optimiser.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        direction = (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-8)
        value = value - 0.01 * step * (0.1 * value + direction)
    torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=1e-12)


def test_state_goes_by_name() -> None:
    def make(order: list[str]) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        both = {name: nn.Parameter(torch.randn(2, 3)) for name in ("a.x", "b")}
        both = {name: both[name] for name in order}
        groups = parameter_groups(both, weight_decay=0.1, undecayed=frozenset())
        return both, build_optimiser(groups, betas=(0.9, 0.99), eps=1e-8)

    def move(parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
        for name, parameter in parameters.items():
            parameter.grad = torch.full_like(parameter, float(len(name)))
        set_rate(optimiser, 0.1)
        optimiser.step()

    first, one = make(["a.x", "b"])
    move(first, one)
    tensors = {name: value.clone() for name, value in optimiser_state(one).items()}
    assert set(tensors) == {f"{k}.{n}" for k in ("step", "exp_avg", "exp_avg_sq") for n in first}
    second, two = make(["b", "a.x"])  # another order of parameters
    for name, parameter in second.items():
        parameter.data.copy_(first[name].data)
    restore_optimiser(two, tensors)
    move(first, one)
    move(second, two)
    for name, parameter in first.items():
        assert torch.equal(parameter, second[name])


class Counting(torch.optim.SGD):
    """Keeps numbers in its state and in its groups, as some optimisers do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["share"] = 0.5 * state["count"]
                state["nothing"] = None
        return super().step(closure)


def test_numbers_in_an_optimisers_state_come_back_as_numbers() -> None:
    def make() -> tuple[ToyTask, torch.optim.Optimizer]:
        task = ToyTask()
        return task, optimiser_of(task, SETTINGS, lambda groups: Counting(groups, lr=1.0))

    task, one = make()
    one.step()
    one.step()
    snapshot = take_snapshot(task, one, None, 2, {})
    other, two = make()
    restore(snapshot, other, two, None)
    for (_, state), (_, came) in zip(one.state.items(), two.state.items(), strict=True):
        assert came == {"count": 2, "share": 1.0} and came.items() <= state.items()
        assert type(came["count"]) is int
    assert [group["k"] for group in two.param_groups] == [2] * len(one.param_groups)


def test_what_cannot_be_kept_and_what_is_no_optimiser_is_told() -> None:
    task = ToyTask()
    for make in (lambda groups: None, lambda groups: torch.optim.SGD([torch.zeros(1)], lr=1.0)):
        with pytest.raises(UserError, match="is not one of the groups that were given"):
            optimiser_of(task, SETTINGS, make)  # type: ignore[arg-type]
    sgd = optimiser_of(task, SETTINGS, lambda groups: torch.optim.SGD(groups, lr=1.0))
    sgd.state[task.table]["history"] = []
    with pytest.raises(UserError, match="the optimiser SGD keeps 'history', a list"):
        optimiser_state(sgd)


def test_average_follows_the_weights() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    average = WeightAverage({"p": parameter}, 0.9)
    expected = torch.zeros(3)
    for step in range(200):
        parameter.data.fill_(float(step))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.tensors["p"], expected)
    assert average_decay(0, 0.9) == 0.1 and average_decay(10**6, 0.9) == 0.9
    with average.swapped_in():
        assert torch.equal(parameter.detach(), average.tensors["p"])
    assert parameter[0] == 199
