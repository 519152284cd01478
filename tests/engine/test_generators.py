from dataclasses import replace

import pytest
import torch
from torch import Tensor

from beit.engine.fit import fit, kept_generators
from engine.engine_toy import SETTINGS, ToyTask, toy_batches

SHORT = replace(SETTINGS, total_steps=2, evaluate_every=0)


def test_the_callers_random_state_is_kept() -> None:
    task = ToyTask()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fit(task, toy_batches(SHORT), SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchs_compiler_is_not_imported_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C in the midst of that import made a later one fail, which hid the Ctrl-C."""

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("nobody asked for repeatable kernels")

    monkeypatch.setattr(torch, "use_deterministic_algorithms", refuse)
    fit(ToyTask(), toy_batches(SHORT), SHORT)


def test_a_devices_generator_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    device, states = torch.device("cuda", 1), {1: torch.tensor([7])}

    def number(where: torch.device) -> int:
        assert where.type == "cuda"
        return int(where.index)

    def put(state: Tensor, where: torch.device) -> None:
        states[number(where)] = state

    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda where: states[number(where)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", put)
    with kept_generators(device):
        states[1] = torch.tensor([8])  # as torch.manual_seed would
    assert int(states[1]) == 7


@pytest.mark.gpu
def test_a_run_on_a_gpu_keeps_the_callers_random_state() -> None:
    settings = replace(SHORT, device="cuda")
    task = ToyTask()
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    fit(task, toy_batches(settings), settings)
    assert torch.equal(torch.cuda.get_rng_state(), before)
