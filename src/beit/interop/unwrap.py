"""Taking a state dict out of what other programs save around it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from beit.errors import UserError
from beit.interop.names import AVERAGE_CONTAINERS, CONTAINERS, WRAPPERS
from beit.interop.translate import Tensors, few


class Unwrapped(NamedTuple):
    """A state dict, the prefix that its names had, and what was taken and left."""

    tensors: Tensors
    prefix: str
    notes: list[str]
    left_out: list[str]  # names in the file that are not the encoder's


def unwrapped(read: Mapping[str, Any], where: str, average: bool = False) -> Unwrapped:
    """Take the state dict out of a checkpoint's containers, and prefixes off its names.

    Args:
        read: What the file holds.
        where: What the file is called in a complaint.
        average: Take the moving average of the weights.

    Raises:
        UserError: There is no moving average, or something is no tensor.
    """
    notes: list[str] = []
    dropped: list[str] = []
    wanted = AVERAGE_CONTAINERS if average else CONTAINERS
    found = next((name for name in wanted if isinstance(read.get(name), Mapping)), None)
    if found is not None:
        read = {str(name): value for name, value in read[found].items()}
        notes.append(f"took the weights under {found!r}")
    elif average:
        raise UserError(f"{where} holds no moving average ({' or '.join(AVERAGE_CONTAINERS)})")
    prefix = next((p for p in WRAPPERS if any(name.startswith(p) for name in read)), "")
    if prefix:
        read, dropped = _stripped(read, prefix, WRAPPERS[prefix])
        notes += [f"left out what is not the encoder: {few(dropped)}"] if dropped else []
    odd = [name for name, value in read.items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"{where} is no state dict: {few(sorted(odd))} are not tensors")
    plain = {name: _plain(value) for name, value in read.items()}
    return Unwrapped(plain, prefix, notes, dropped)


def _stripped(
    read: Mapping[str, Any], prefix: str, beside: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in read.items():
        if beside and name.startswith(beside):
            dropped.append(name)
        else:
            kept[name.removeprefix(prefix)] = value
    if beside:  # a projector on top of a self-supervised encoder is no classifier of ours
        projector = [name for name in kept if name.startswith("head.")]
        dropped += [prefix + name for name in projector]
        kept = {name: value for name, value in kept.items() if name not in projector}
    return kept, sorted(dropped)


def _plain(value: Tensor) -> Tensor:
    """A float32 copy of our own; reduced precision widens without loss."""
    value = value.detach()
    return value.float().contiguous() if value.is_floating_point() else value
