"""A batch as a list of samples, to compare batches that were cut up differently."""

from collections.abc import Iterator

from torch import Tensor

from beit.batch import ImageBatch, Travels


def tensors_of(batch: Travels) -> list[Tensor]:
    """Every tensor of a batch, in the order of its fields."""
    found: list[Tensor] = []
    for value in vars(batch).values():
        if isinstance(value, Travels):
            found += tensors_of(value)
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def rows_of(batch: ImageBatch) -> Iterator[list[Tensor]]:
    """The tensors of each sample."""
    return ([tensor[row] for tensor in tensors_of(batch)] for row in range(len(batch.index)))
