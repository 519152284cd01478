"""The same weights in an encoder of another picture size, or with a bias table a layer."""

# (h, w) patch grid, N = h * w patches, D width, H heads, n and m largest offsets along an axis

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from beit.errors import UserError
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.nn.position import SPECIAL_ROWS, relative_table_rows

Grid = tuple[int, int]
Weights = dict[str, Tensor]

LARGEST_FACTOR = 1.5  # between two steps of a progression; the reference's
_EQUAL = ("width", "depth", "heads", "channels", "patch_size", "mlp_ratio")
_FREE = ("drop_path", "dropout", "checkpointing")
_POSITIONS = "embeddings.positions"
_SHARED_TABLE = "shared_bias_table"


def adapted(encoder: Encoder, config: EncoderConfig) -> tuple[Encoder, tuple[str, ...]]:
    """Build an encoder of another configuration with the weights of a given one.

    What may differ: the picture's size (absolute positions and relative bias tables are resized),
    a bias table shared by all blocks (copied into each, as the reference does for fine-tuning),
    stochastic depth, dropout and checkpointing. With the same configuration the weights are
    bitwise the same. The default generator is left alone.

    Args:
        encoder: Where the weights come from; not changed.
        config: What is wanted.

    Returns:
        A new encoder on the same device and in the same mode, and a short phrase a change.

    Raises:
        UserError: The weights do not fit; the first difference is named.
    """
    _refuse_what_does_not_fit(encoder.config, config)
    weights = {name: value.detach() for name, value in encoder.state_dict().items()}
    notes = [
        *_share_out_table(weights, encoder.config, config),
        *_resize(weights, encoder.config.grid, config.grid),
        *_changed_settings(encoder.config, config),
    ]
    with torch.random.fork_rng(devices=[]):
        fresh = Encoder(config)
    like = encoder.embeddings.special_token
    fresh.to(device=like.device, dtype=like.dtype)
    fresh.load_state_dict(weights)
    return fresh.train(encoder.training), tuple(notes)


def _refuse_what_does_not_fit(old: EncoderConfig, new: EncoderConfig) -> None:
    for name in _EQUAL:
        has, wanted = getattr(old, name), getattr(new, name)
        if has != wanted:
            has, wanted, name = _shown(has), _shown(wanted), name.replace("_", " ")
            raise UserError(
                f"the encoder has {name} {has} and {name} {wanted} is asked for; "
                f"its weights fit {name} {has} only"
            )
    for what, has_it, wants_it in (
        ("absolute positions", old.absolute_positions, new.absolute_positions),
        ("LayerScale", old.layer_scale is not None, new.layer_scale is not None),
    ):
        if has_it != wants_it:
            has, way = ("has", "keep") if has_it else ("lacks", "leave out")
            raise UserError(
                f"the encoder {has} {what}, the one asked for does not agree; {way} {what}"
            )
    tables = (old.relative_positions, new.relative_positions)
    if old.relative_positions != new.relative_positions and tables != ("shared", "per-layer"):
        raise UserError(
            f"the encoder has relative positions {tables[0]!r} and {tables[1]!r} is asked for; "
            "only a shared table can become one a layer"
        )


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _changed_settings(old: EncoderConfig, new: EncoderConfig) -> Iterator[str]:
    for name in _FREE:
        if getattr(old, name) != getattr(new, name):
            yield f"{name} {getattr(old, name)} -> {getattr(new, name)}"


def _share_out_table(weights: Weights, old: EncoderConfig, new: EncoderConfig) -> Iterator[str]:
    if old.relative_positions != new.relative_positions:
        table = weights.pop(_SHARED_TABLE)
        weights |= {f"blocks.{block}.bias_table": table for block in range(new.depth)}
        yield f"shared relative table copied into each of {new.depth} layers"


def _resize(weights: Weights, old: Grid, new: Grid) -> Iterator[str]:
    """Replace what depends on the grid."""
    if old == new:
        return
    change = f"resized from {_shown(old)} to {_shown(new)}"
    if _POSITIONS in weights:
        weights[_POSITIONS] = resize_positions(weights[_POSITIONS], old, new)
        yield f"positions {change} (bicubic)"
    tables = [name for name in weights if name.endswith("bias_table")]
    for name in tables:
        weights[name] = resize_relative_table(weights[name], old, new)
    if tables:
        what = "relative table" if len(tables) == 1 else f"{len(tables)} relative tables"
        yield f"{what} {change} (geometric progression, cubic)"


def resize_positions(positions: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """Resize absolute position embeddings bicubically, as the reference does.

    Args:
        positions: (1, 1 + N, D), the special token's first; that one is kept.
        old_grid: (h, w) they belong to.
        new_grid: (h, w) wanted.

    Returns:
        (1, 1 + N', D) float32; the same tensor when nothing changes.
    """
    assert positions.shape[1] == 1 + math.prod(old_grid), (positions.shape, old_grid)
    if old_grid == new_grid:
        return positions
    special, patches = positions[:, :1].float(), positions[:, 1:].float()
    image = patches.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    resized = functional.interpolate(image, new_grid, mode="bicubic", align_corners=False)
    return torch.cat((special, resized.flatten(2).transpose(1, 2)), dim=1)


def resize_relative_table(table: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """Resize a relative bias table by geometric-progression cubic interpolation.

    Neighbouring patches matter most, so the old entries are not spread evenly: along each axis the
    old offsets 0, 1, 2, 3 ... are put at 0, 1, 1 + q, 1 + q + q^2 ..., where q is such that the
    largest lands on the largest new offset, and a bicubic spline through them is read at the new
    offsets. Offsets 0 and 1 keep their values, far ones are stretched. The spline is FITPACK's
    interpolating one ("not a knot"), which the reference used; it is a linear map along each axis.
    Offsets beyond what q <= 1.5 reaches (of a small grid much enlarged, or of one or two patches)
    take the value of the largest: through points further apart the spline would swing far beyond.

    Departure: the reference knows squares only and looks for q in [1.01, 1.5] down to 1e-6; here
    each axis has its own q >= 1, to the precision of the machine. A smaller grid keeps the entries
    of the offsets it has (q = 1); the reference's smallest q squeezes them by up to one in a
    hundred an offset.

    Args:
        table: ((2h-1)(2w-1) + 3, H); the last three rows are the special token's and are kept.
        old_grid: (h, w) it belongs to.
        new_grid: (h, w) wanted.

    Returns:
        ((2h'-1)(2w'-1) + 3, H) float32; the same tensor when nothing changes.
    """
    assert len(table) == relative_table_rows(old_grid), (table.shape, old_grid)
    if old_grid == new_grid:
        return table
    offsets, special = table[:-SPECIAL_ROWS].double(), table[-SPECIAL_ROWS:].float()
    sides = tuple(2 * side - 1 for side in old_grid)
    down, right = (
        torch.from_numpy(_interpolation(old - 1, new - 1)).to(table.device)
        for old, new in zip(old_grid, new_grid, strict=True)
    )
    resized = torch.einsum("ai,bj,ijh->abh", down, right, offsets.reshape(*sides, -1))
    return torch.cat((resized.flatten(0, 1).float(), special))


def _interpolation(old: int, new: int) -> NDArray[np.float64]:
    """The (2m+1, 2n+1) weights that old entries have in new ones, along one axis."""
    if new <= old:
        return np.eye(2 * old + 1)[old - new : old + new + 1]
    if old == 0:
        return np.ones((2 * new + 1, 1))
    from scipy.interpolate import make_interp_spline

    places = geometric_places(old, new)
    wanted = np.arange(-new, new + 1.0).clip(places[0], places[-1])
    spline = make_interp_spline(places, np.eye(len(places)), k=min(3, len(places) - 1))
    return np.asarray(spline(wanted), dtype=np.float64)


def geometric_places(old: int, new: int) -> NDArray[np.float64]:
    """Where the old offsets -n ... n are put, so that they reach from -m to m (m >= n), or nearly.

    Returns:
        (2n+1,) increasing and symmetric: 0, then 1, 1 + q, 1 + q + q^2 ... on either side, with q
        no larger than `LARGEST_FACTOR`.
    """
    assert new >= old >= 1, (old, new)
    low, high = 1.0, LARGEST_FACTOR
    while old > 1 and low < (ratio := (low + high) / 2) < high:
        if (ratio ** np.arange(old)).sum() > new:
            high = ratio
        else:
            low = ratio
    one_side = np.cumsum(low ** np.arange(old))
    return np.concatenate((-one_side[::-1], [0.0], one_side))
