"""What a forward pass keeps for the backward pass, read from the graph behind a loss."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def saved_bytes(loss: Tensor, model: nn.Module) -> Counter[str]:
    """Bytes that the graph behind a loss keeps, by the operation that first wants them."""
    seen = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    found: Counter[str] = Counter()
    for node in _nodes(loss):
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                found[node.name().removesuffix("0").removesuffix("Backward")] += storage.nbytes()
    return found


def _nodes(loss: Tensor) -> Iterator[Any]:
    """Every operation of a graph, each once."""
    waiting: list[Any] = [loss.grad_fn]
    known = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        following = [before for before, _ in node.next_functions if before is not None]
        waiting += [node for node in following if node not in known]
        known.update(following)


def _saved(node: Any) -> Iterator[Tensor]:
    names = [name for name in dir(node) if name.startswith("_saved_")]
    values = [getattr(node, name) for name in names] + list(getattr(node, "saved_tensors", ()))
    for value in values:
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, Tensor):
                yield one
