"""Turning other people's tensors into ours and back by a layout's tables; nothing falls aside."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from beit.errors import UserError
from beit.interop.names import BLOCK, PATCHES, Layout, Table

Tensors = dict[str, Tensor]
_FEW = 3


def few(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    whole = list(names)
    rest = f" and {len(whole) - _FEW} more" if len(whole) > _FEW else ""
    return ", ".join(whole[:_FEW]) + rest


def expanded(table: Table, depth: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The rows of a table for every block: (their names, our names), each a stack."""
    rows = []
    for theirs, ours in table.items():
        for number in range(depth if "#" in theirs else 1):
            sides = (side.replace("#", str(number)).split(" + ") for side in (theirs, ours))
            left, right = (tuple(side) for side in sides)
            rows.append((left, right))
    return rows


def depth_of(layout: Layout, names: Iterable[str]) -> int:
    """Blocks in a file: one more than the highest block number in the layout's own names."""
    stem = next(name for name in layout.body if "#" in name).partition("#")[0]
    pattern = re.compile(re.escape(stem) + r"(\d{1,4})\.")
    return 1 + max((int(found[1]) for name in names if (found := pattern.match(name))), default=-1)


def to_ours(layout: Layout, table: Table, theirs: Mapping[str, Tensor], where: str) -> Tensors:
    """Translate a file's tensors.

    Args:
        layout: Says where the blocks are.
        table: The layout's rows for the encoder and for the head that is there.
        theirs: The file's tensors.
        where: What the file is called in a complaint.

    Raises:
        UserError: A stack is not whole, a shape is impossible, or a name stands in no row.
    """
    ours: Tensors = {}
    left = dict(theirs)
    for names, own in expanded(table, depth_of(layout, theirs)):
        parts = [left.pop(name) for name in names if name in left]
        if not parts:
            continue
        if len(parts) < len(names):
            missing = [name for name in names if name not in theirs]
            raise UserError(f"{where} does not fit the {layout.name} layout: no {few(missing)}")
        ours |= _split(parts, own, names[0], where)
    if left:
        raise UserError(
            f"{where} does not fit the {layout.name} layout: unexpected {few(sorted(left))}"
        )
    return ours


def _split(parts: list[Tensor], own: tuple[str, ...], name: str, where: str) -> Tensors:
    """Stack their parts and cut the stack into ours."""
    try:
        stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
    except RuntimeError as error:
        raise UserError(f"{where}: the shapes of {name} and its fellows differ") from error
    if own == (PATCHES,) and stacked.dim() == 4:
        stacked = stacked.flatten(1)
    if stacked.dim() == 0 or len(stacked) % len(own):
        raise UserError(f"{where}: {name!r} has shape {tuple(stacked.shape)}, not {len(own)} parts")
    pieces = stacked.chunk(len(own))
    return {
        ours: piece.clone() if len(own) > 1 else piece
        for ours, piece in zip(own, pieces, strict=True)
        if ours != "0"
    }


def to_theirs(table: Table, ours: Mapping[str, Tensor], kernel: tuple[int, int, int]) -> Tensors:
    """Write our tensors under their names; what no row names is simply not written.

    Args:
        table: The layout's rows.
        ours: Tensors under our names.
        kernel: (channels, height, width) of a patch, the shape of their convolution.
    """
    theirs: Tensors = {}
    for names, own in expanded(table, our_depth(ours)):
        present = [ours[name] for name in own if name in ours]
        if not present:
            continue
        parts = [ours[name] if name in ours else torch.zeros_like(present[0]) for name in own]
        if own == (PATCHES,):
            parts = [parts[0].reshape(-1, *kernel)]
        stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
        pieces = stacked.chunk(len(names))
        theirs |= {name: part.contiguous() for name, part in zip(names, pieces, strict=True)}
    return theirs


def our_depth(ours: Iterable[str]) -> int:
    """Blocks among our own names."""
    stem = BLOCK.partition("#")[0]
    numbers = (name.removeprefix(stem).partition(".")[0] for name in ours if name.startswith(stem))
    return 1 + max((int(number) for number in numbers), default=-1)


def their_names(table: Table, depth: int) -> dict[str, str]:
    """Our name to theirs (the whole stack), to complain in the file's own words."""
    return {
        name: " + ".join(names)
        for names, own in expanded(table, depth)
        for name in own
        if name != "0"
    }
