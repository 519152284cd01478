"""A run's state as named tensors and back."""

import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from beit.engine.checkpoints import Snapshot
from beit.engine.ema import WeightAverage
from beit.engine.optimiser import (
    group_numbers,
    optimiser_state,
    restore_optimiser,
    trainable,
)
from beit.version import VERSION


def model_tensors(task: nn.Module) -> dict[str, Tensor]:
    """All parameters and saved buffers; a tensor that has several names under its first one."""
    found: dict[int, str] = {}
    tensors = {}
    for name, value in task.state_dict(keep_vars=True).items():
        if id(value) not in found:
            found[id(value)] = name
            tensors[name] = value.detach()
    return tensors


def restore_model(task: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `model_tensors` gave.

    Raises:
        ValueError: The tensors are of another model.
    """
    expected = model_tensors(task)
    differing = sorted(set(expected) ^ set(tensors))
    differing += [n for n in expected if n in tensors and expected[n].shape != tensors[n].shape]
    if differing:
        raise ValueError(f"the checkpoint is of another model (first difference: {differing[0]})")
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(tensors[name])


def take_snapshot(
    task: nn.Module,
    optimiser: Optimizer,
    average: WeightAverage | None,
    step: int,
    state: Mapping[str, Any],
) -> Snapshot:
    """The run as it is now. The tensors are the live ones: write them before the next step."""
    tensors = {"model": model_tensors(task), "optimiser": optimiser_state(optimiser)}
    if average is not None:
        tensors["average"] = dict(average.tensors)
    groups = {"groups": numbers} if (numbers := group_numbers(optimiser)) else {}
    return Snapshot(step, tensors, {**state, **groups, "versions": versions()})


def restore(
    snapshot: Snapshot, task: nn.Module, optimiser: Optimizer, average: WeightAverage | None
) -> None:
    """Put a snapshot back into the run's objects."""
    restore_model(task, snapshot.tensors["model"])
    restore_optimiser(optimiser, snapshot.tensors["optimiser"])
    groups = snapshot.state.get("groups", [])
    for group, numbers in zip(optimiser.param_groups, groups, strict=bool(groups)):
        group.update(numbers)
    if average is not None:
        if "average" not in snapshot.tensors:
            raise ValueError("the checkpoint has no averaged weights")
        average.restore(snapshot.tensors["average"])


def expected_size(task: nn.Module, average: bool) -> int:
    """Bytes that a checkpoint's tensors will take, before the optimiser has any."""
    trained = sum(parameter.nbytes for parameter in trainable(task).values())
    model = sum(value.nbytes for value in model_tensors(task).values())
    return model + trained * (3 if average else 2)


def versions() -> dict[str, str]:
    """What wrote the state, for whoever must explain a difference."""
    return {"beit": VERSION, "torch": str(torch.__version__), "python": platform.python_version()}
