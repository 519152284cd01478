"""Other people's models, wherever they are from, as ours: the one way to read them."""

from dataclasses import replace
from pathlib import Path

from beit.interop import timm_models
from beit.interop.models import ForeignModel, for_our_pictures, model_from_file
from beit.interop.normalisation import Normalisation
from beit.interop.timm_folders import as_described, described_by_timm, weights_in


def read_foreign(
    spec: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    heads: int | None = None,
    average: bool = False,
    fed: Normalisation | None = None,
) -> ForeignModel:
    """Read a model of timm's by its name, or a file or folder in any layout that is known here.

    Pictures may be normalised with ImageNet's mean and deviation afterwards, as everywhere here:
    where a model is known to have been fed with others, its patch projection makes up for it.

    Args:
        spec: `timm:NAME`, with pre-trained weights from timm's own cache or from the hub; or a
            `.pth`, `.pt` or `.safetensors` file (the reference, timm, DeiT, MAE, DINO, MoCo v3);
            or a folder of transformers or of timm.
        image_size: (height, width), for files that do not say and where it is no square.
        heads: Attention heads, for files that do not say how many.
        average: Take the moving average of the weights from a file that has both.
        fed: What its pictures were normalised with; wins over what a file says.

    Returns:
        The encoder, its head if there is one, and what was assumed, filled in or left out.

    Raises:
        UserError: There is no such model or file, its weights cannot be had, or it is not an
            encoder of ours.
    """
    path, described = Path(spec), None
    if str(spec).startswith(timm_models.PREFIX):
        model = timm_models.model_named(str(spec).removeprefix(timm_models.PREFIX))
    elif (described := described_by_timm(path)) is None:
        model = model_from_file(path, image_size=image_size, heads=heads, average=average)
    else:
        size, count = image_size or described.image_size, heads or described.heads
        model = model_from_file(weights_in(path), image_size=size, heads=count, average=average)
        model = as_described(model, described)
    if fed is not None:
        model = replace(model, prepared=model.prepared._replace(fed=fed))
    return for_our_pictures(model)
