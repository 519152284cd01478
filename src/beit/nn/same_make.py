"""Whether a module is made as another one: what is saved in words must be built again from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from beit.errors import UserError

_SETTINGS = (int, float, str, tuple, type(None))  # bool is an int


def refuse_other_make(module: nn.Module, same: nn.Module, what: str) -> None:
    """See that what is built again from a model's description would compute what the model does.

    Args:
        module: What is to be saved.
        same: What was built from its description; may lie on the meta device.
        what: The module is to be saved as.

    Raises:
        UserError: A part is of another type, size or setting, or has another method.
    """
    difference = _of_another_type("it", module, type(same)) or first_difference(module, same)
    if difference is not None:
        raise not_ours(what, difference)


def not_ours(what: str, difference: str) -> UserError:
    """The refusal to save something as what it is not."""
    return UserError(
        f"this model cannot be saved as {what}: {difference}, and another model would be loaded "
        "again; keep its state_dict() with torch.save, and the code that made it"
    )


def first_difference(module: nn.Module, same: nn.Module) -> str | None:
    """Where a module is not made as another, in words; None where they are made alike.

    Types count exactly, for nobody can tell what a subclass computes; so do plain settings and
    methods that were replaced on an instance. Hooks do not count.
    """
    ours, theirs = dict(module.named_modules()), dict(same.named_modules())
    for name, part in ours.items():
        where = name or "it"
        if name not in theirs:
            return f"{where} is a {type(part).__qualname__}, where beit's own has nothing"
        difference = _of_another_type(where, part, type(theirs[name]))
        difference = difference or _set_otherwise(where, part, vars(theirs[name]))
        if difference is not None:
            return difference
    missing = [name for name in theirs if name not in ours]
    return f"{missing[0]} is missing" if missing else _of_another_size(module, same)


def _of_another_type(where: str, part: object, kind: type) -> str | None:
    if type(part) is kind:
        return None
    return f"{where} is a {type(part).__qualname__}, where beit's own is a {kind.__qualname__}"


def _set_otherwise(where: str, part: nn.Module, theirs: Mapping[str, Any]) -> str | None:
    ours = {name: value for name, value in vars(part).items() if not name.startswith("_")}
    for name, value in theirs.items():
        if name in ours and name != "training" and isinstance(value, _SETTINGS):
            if ours[name] != value:
                return f"{where} has {name} {ours[name]!r}, where beit's own has {value!r}"
    replaced = [name for name in ours if name not in theirs and hasattr(type(part), name)]
    return f"{where} has a {replaced[0]} of its own" if replaced else None


def _of_another_size(module: nn.Module, same: nn.Module) -> str | None:
    ours, theirs = _sizes(module), _sizes(same)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            sizes = [str(sizes.get(name, "missing")) for sizes in (ours, theirs)]
            return f"{name} is {sizes[0]}, where beit's own is {sizes[1]}"
    return None


def _sizes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors: list[tuple[str, Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    return {name: tuple(value.shape) for name, value in tensors}
