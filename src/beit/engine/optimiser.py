"""AdamW, or another, with the reference's decay groups and a rate scale for each parameter."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from beit.engine.protocol import ScalesRates, Task
from beit.engine.settings import FitSettings
from beit.errors import UserError

_NUMBER = "#"  # marks what is a number of Python's in the state, and no tensor
_SET_ANEW = ("lr", "scale")


def trainable(task: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; shared ones once."""
    return {name: value for name, value in task.named_parameters() if value.requires_grad}


def parameter_groups(
    parameters: Mapping[str, nn.Parameter],
    *,
    weight_decay: float,
    undecayed: frozenset[str],
    rate_scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Sort parameters by whether they decay and by how their rate is scaled.

    No decay on 1-D parameters (norms, all biases, LayerScale) and on those the task names
    (positions, the special token). Tables of two dimensions, the relative bias among them, and the
    mask embedding decay, as in the reference.

    Args:
        parameters: What is trained, by name.
        weight_decay: For the groups that decay.
        undecayed: Names that do not, beside the 1-D ones.
        rate_scales: Factors on the rate by name; 1 where a name is missing.

    Returns:
        Groups for torch's optimisers, each with `names` and `scale` beside the usual keys.
    """
    scales = rate_scales or {}
    unknown = sorted(set(scales) - set(parameters))
    assert not unknown, f"rate scales for what is not trained: {unknown}"
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decays = parameter.ndim > 1 and name not in undecayed
        key = (decays, scales.get(name, 1.0))
        if key not in groups:
            decay = weight_decay if decays else 0.0
            groups[key] = {"params": [], "names": [], "weight_decay": decay, "scale": key[1]}
        groups[key]["params"].append(parameter)
        groups[key]["names"].append(name)
    return list(groups.values())


def build_optimiser(
    groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
) -> Optimizer:
    """AdamW in one fused kernel where the device has one (CPU and CUDA do)."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices <= {"cpu", "cuda"}
    return AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=fused or None)


def optimiser_of(
    task: nn.Module,
    settings: FitSettings,
    make: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
) -> Optimizer:
    """The optimiser of a task that is on its device, by what task and settings say.

    Args:
        task: What is trained.
        settings: Its numbers; betas and epsilon are AdamW's.
        make: Makes another one from the groups.

    Raises:
        UserError: What it makes is no optimiser of these groups.
    """
    groups = parameter_groups(
        trainable(task),
        weight_decay=settings.weight_decay,
        undecayed=cast(Task, task).undecayed_parameters(),
        rate_scales=task.rate_scales() if isinstance(task, ScalesRates) else None,
    )
    if make is None:
        return build_optimiser(groups, betas=settings.betas, eps=settings.eps)
    names = [group["names"] for group in groups]
    optimiser = make(groups)
    kept = [group.get("names") for group in getattr(optimiser, "param_groups", [])]
    if not isinstance(optimiser, Optimizer) or kept != names:
        raise UserError(
            f"the optimiser that was made, {type(optimiser).__name__}, is not one of the groups "
            "that were given: make it from these, as lambda groups: torch.optim.SGD(groups, lr=1)"
        )
    return optimiser


def set_rate(optimiser: Optimizer, rate: float) -> None:
    """Set this step's rate, scaled in each group."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def optimiser_state(optimiser: Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors as `exp_avg.<parameter name>` and so on.

    Raises:
        UserError: It keeps something else than tensors and numbers.
    """
    tensors = {}
    for group in optimiser.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimiser.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{key}.{name}"] = value
                elif isinstance(value, (int, float)):
                    kind = torch.float64 if isinstance(value, float) else None
                    tensors[f"{key}{_NUMBER}.{name}"] = torch.tensor(value, dtype=kind)
                elif value is not None:
                    raise UserError(
                        f"the optimiser {type(optimiser).__name__} keeps {key!r}, a "
                        f"{type(value).__name__}: tensors and numbers alone can be saved"
                    )
    return tensors


def group_numbers(optimiser: Optimizer) -> list[dict[str, float]]:
    """The numbers in an optimiser's groups, where some keep their state; none of AdamW's.

    What is said anew, the rate and the names, is left out.
    """
    if isinstance(optimiser, AdamW):
        return []
    return [
        {k: v for k, v in group.items() if isinstance(v, (int, float)) and k not in _SET_ANEW}
        for group in optimiser.param_groups
    ]


def restore_optimiser(optimiser: Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `optimiser_state` gave; the names may come in any order."""
    packed = optimiser.state_dict()
    states: dict[int, dict[str, Any]] = {}
    by_name: dict[str, dict[str, Any]] = {}
    for full_name, value in tensors.items():
        key, name = full_name.split(".", 1)
        number = key.endswith(_NUMBER)
        by_name.setdefault(name, {})[key.removesuffix(_NUMBER)] = value.item() if number else value
    for group, packed_group in zip(optimiser.param_groups, packed["param_groups"], strict=True):
        for name, number in zip(group["names"], packed_group["params"], strict=True):
            if name in by_name:
                states[number] = by_name[name]
    expected = {name for group in optimiser.param_groups for name in group["names"]}
    assert set(by_name) <= expected, "the optimiser's state is of other parameters"
    optimiser.load_state_dict({"state": states, "param_groups": packed["param_groups"]})
