"""Graphs for other runtimes, tried on real pictures before they are written."""

import torch
from torch import Tensor

from beit.commands.using.inputs import batch_of, view_of
from beit.data.decoding.decode import BadPicture
from beit.data.sources.opening import open_source
from beit.data.views.views import ViewSettings
from beit.errors import UserError

PICTURES = 8
DIGITS = "digits"  # handwritten ones, always there


def real_pictures(spec: str, size: tuple[int, int], count: int = PICTURES) -> Tensor:
    """Pictures as an encoder takes them.

    Args:
        spec: Where from; see `open_source`.
        size: (height, width) in pixels.
        count: How many, from all over the source.

    Returns:
        (count, 3, H, W) normalised floats; the source's are repeated when it has fewer.

    Raises:
        UserError: The source cannot be opened, or holds no readable picture.
    """
    source, views = open_source(spec, "all"), ViewSettings(patch_view=size, random=False)
    found: list[Tensor] = []
    for index in range(0, len(source), max(1, len(source) // count)):
        try:
            found.append(view_of(source.read(index), views))
        except BadPicture:
            continue
        if len(found) == count:
            break
    if not found:
        raise UserError(f"{spec} holds no picture that can be read")
    repeated = [found[place % len(found)] for place in range(count)]
    return batch_of(repeated, views, torch.device("cpu"))
