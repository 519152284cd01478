"""A CUDA device where there is none: shapes and devices without numbers, as torch.compile has them.

What needs a number (`.item()`, `if tensor:`, a mask as an index) raises, as do operations across
devices, so a step that passes here neither mixes devices nor makes the host wait for the GPU.
Autograd's own backward needs a real device and is left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
_QUESTIONS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default}
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


# The waived types: torch does not type the mode's construction.
class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the copies to the device that the host waits for; may answer questions: 1 or False."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waited: list[str] = []
        self.answers = 0  # how often a number was asked for, where that is allowed
        self.may_ask = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.may_ask and func in _QUESTIONS:
            self.answers += 1
            return {torch.bool: False}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        if func is torch.ops.aten.exponential_.default:
            return args[0]  # torch cannot imagine it with a generator
        found = func(*args, **kwargs)
        if func in _COPIES and found.device.type == "cuda":
            given = args[1] if func is torch.ops.aten.copy_.default else args[0]
            at_once = kwargs.get("non_blocking", False) or True in args[2:]
            if given.device.type == "cpu" and given.dim() > 0 and not at_once:
                self.waited.append(f"{tuple(given.shape)} {given.dtype}")
        return found


@contextmanager
def imagined_cuda(patch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Torch as on a machine with one GPU, for modules that `carry` has brought there."""
    patch.setattr(Tensor, "pin_memory", lambda self: self)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        yield watch


def carry(*modules: nn.Module) -> None:
    """What `Module.to` cannot do here: new parameters and buffers on the device, ties kept."""
    moved: dict[int, Tensor] = {}
    for module in (part for whole in modules for part in whole.modules()):
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    there = torch.empty_like(tensor, device=CUDA, requires_grad=False)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    wanted = tensor.requires_grad
                    moved[id(tensor)] = nn.Parameter(there, wanted) if is_parameter else there
                table[name] = moved[id(tensor)]


def without_backward(patch: pytest.MonkeyPatch, task: nn.Module) -> None:
    """Let `backward` leave gradients of the right shapes, and no more."""

    def backward(self: Tensor) -> None:
        assert self.device == CUDA and self.dim() == 0 and self.requires_grad
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)

    patch.setattr(Tensor, "backward", backward)
