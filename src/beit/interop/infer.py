"""What an encoder was made of, read off the shapes of its tensors."""

# N patches, (h, w) patch grid, D width

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from beit.errors import UserError
from beit.interop.names import BLOCK, MASK, POSITIONS, SHARED_TABLE, SPECIAL
from beit.interop.translate import our_depth
from beit.nn.config import EncoderConfig, RelativePositions
from beit.nn.position import SPECIAL_ROWS, relative_table_rows

HEAD_WIDTH = 64  # of every published BEiT, ViT, DeiT, MAE and DINO; MoCo v3's small has its own
_BLOCK_TENSORS = 12  # that every block has
LAYER_SCALE = 0.1  # the initial value is not in the weights, and matters to nothing any more


@dataclass(frozen=True)
class Hints:
    """What shapes cannot say: given by a config.json or by the user; None where it is not.

    Attributes:
        image_size: (height, width) in pixels; without it a square is assumed.
        heads: Attention heads, needed where there is no relative bias table to count them.
        layer_scale: The factors' initial value.
    """

    image_size: tuple[int, int] | None = None
    heads: int | None = None
    layer_scale: float = LAYER_SCALE
    drop_path: float = 0.0


@dataclass
class Inferred:
    """An encoder's configuration, and sentences about what was assumed."""

    config: EncoderConfig
    notes: list[str] = field(default_factory=list)


def infer_config(
    ours: Mapping[str, Tensor], kernel: Tensor | None, hints: Hints, where: str
) -> Inferred:
    """Read an encoder's configuration off its tensors.

    Args:
        ours: The tensors under our names.
        kernel: The patch projection as the file has it, a convolution's (D, channels, h, w).
        hints: What is known besides.
        where: What the file is called in a complaint.

    Raises:
        UserError: Tensors that every encoder has are not there, or shapes do not say enough.
    """
    if kernel is None or kernel.dim() != 4:
        raise UserError(f"{where} holds no vision Transformer: no 4-D patch projection")
    if SPECIAL not in ours:
        raise UserError(f"{where} is no encoder of beit's: it has no special token [S]")
    notes: list[str] = []
    width, channels = int(kernel.shape[0]), int(kernel.shape[1])
    patch = (int(kernel.shape[2]), int(kernel.shape[3]))
    first = BLOCK.replace("#", "0")
    expand = ours.get(first + "mlp.expand.weight")
    if expand is None or expand.dim() != 2 or width < 1:
        raise UserError(f"{where} holds no Transformer block with an MLP")
    if our_depth(ours) * _BLOCK_TENSORS > len(ours):
        raise UserError(f"{where} numbers {our_depth(ours)} blocks and does not hold them all")
    table = ours.get(SHARED_TABLE, ours.get(first + "bias_table"))
    grid = _grid(ours.get(POSITIONS), table, hints.image_size, patch, where)
    if hints.image_size is None:
        notes.append(f"assumed square pictures of {grid[0] * patch[0]} px")
    relative: RelativePositions = "none"
    if table is not None:
        relative = "shared" if SHARED_TABLE in ours else "per-layer"
    scaled = first + "attention_scale" in ours
    config = EncoderConfig(
        image_size=(grid[0] * patch[0], grid[1] * patch[1]),
        patch_size=patch,
        width=width,
        depth=our_depth(ours),
        heads=_heads(table, width, hints.heads, notes, where),
        channels=channels,
        mlp_ratio=int(expand.shape[0]) / width,
        absolute_positions=POSITIONS in ours,
        relative_positions=relative,
        layer_scale=hints.layer_scale if scaled else None,
        drop_path=hints.drop_path,
    )
    if config.hidden != expand.shape[0]:  # the ratio is a float, and rounds
        raise UserError(f"{where}: an MLP of {expand.shape[0]} does not fit a width of {width}")
    if MASK not in ours:
        notes.append("the file has no mask embedding: it is zeros")
    return Inferred(config, notes)


def _grid(
    positions: Tensor | None,
    table: Tensor | None,
    image_size: tuple[int, int] | None,
    patch: tuple[int, int],
    where: str,
) -> tuple[int, int]:
    if image_size is not None:
        grid = (image_size[0] // patch[0], image_size[1] // patch[1])
    elif positions is not None and positions.dim() == 3:
        side = math.isqrt(max(0, positions.shape[1] - 1))
        grid = (side, side)
    elif table is not None and table.dim() == 2:
        side = (math.isqrt(max(0, table.shape[0] - SPECIAL_ROWS)) + 1) // 2
        grid = (side, side)
    else:
        raise UserError(f"{where} says nothing of the size of its pictures: give --image-size H W")
    patches = grid[0] * grid[1]
    fits = positions is None or tuple(positions.shape[1:2]) == (1 + patches,)
    fits &= table is None or tuple(table.shape[:1]) == (relative_table_rows(grid),)
    if not fits or patches < 1:
        said = "square pictures" if image_size is None else "x".join(map(str, image_size))
        raise UserError(f"{where} is not for {said}: its positions differ; give --image-size H W")
    return grid


def _heads(
    table: Tensor | None, width: int, given: int | None, notes: list[str], where: str
) -> int:
    counted = int(table.shape[1]) if table is not None and table.dim() == 2 else None
    if counted is not None:
        if given not in (None, counted):
            raise UserError(f"{where} has {counted} attention heads, not {given}")
        return counted
    if given is not None:
        return given
    if width % HEAD_WIDTH:
        raise UserError(
            f"{where} does not say how many attention heads share its {width} features: "
            "give --heads N"
        )
    notes.append(f"assumed {width // HEAD_WIDTH} attention heads of width {HEAD_WIDTH}")
    return width // HEAD_WIDTH
