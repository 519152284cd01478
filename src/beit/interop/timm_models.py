"""timm's models by their names, and as objects."""

import difflib
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from beit.errors import UserError
from beit.interop.hub import first_line, impatient
from beit.interop.infer import Hints
from beit.interop.models import ForeignModel, model_from_tensors
from beit.interop.normalisation import normalisation_from
from beit.interop.plain_vit import reason_in_parts
from beit.interop.told import Prepared, centre_share
from beit.nn.encoder import Encoder

PREFIX = "timm:"
TOLERANCE = 1e-3  # on normalised features, which are of order one; float32 in both


def model_named(name: str) -> ForeignModel:
    """Read a model of timm's by its name, as its pictures were normalised.

    Args:
        name: As timm has it, with a tag where there are several; pre-trained weights come from
            timm's own cache or from the hub.

    Raises:
        UserError: There is no such model, its weights cannot be had, or it is not an encoder of
            ours.
    """
    _require_known(name)
    where = f"timm's {name}"
    with torch.device("meta"):  # what it is made of can be told before anything is fetched
        _require_ours(where, _created(name, pretrained=False))
    theirs = _pretrained(name)
    said = theirs.pretrained_cfg
    fed = normalisation_from(said["mean"], said["std"], where)
    return replace(from_module(theirs, where), prepared=Prepared(fed, centre_share(said)))


def from_module(theirs: Any, where: str) -> ForeignModel:
    """A model of timm's as ours; that both compute the same is tried on a picture.

    Args:
        theirs: A `VisionTransformer` or `Beit` of timm's.
        where: What it is called in a complaint.

    Raises:
        UserError: It is not an encoder of ours.
    """
    theirs = theirs.eval()
    _require_ours(where, theirs)
    height, width = (int(side) for side in theirs.patch_embed.img_size)
    hints = Hints((height, width), int(theirs.blocks[0].attn.num_heads))
    model = model_from_tensors(theirs.state_dict(), hints, where)
    normalises_first = not isinstance(theirs.norm, nn.Identity)
    if model.head is not None and theirs.global_pool == "avg" and normalises_first:
        note = "left out its classifier, which normalises tokens before it takes their mean"
        model = replace(model, head=None, notes=(*model.notes, note))
    _require_same(theirs, model.encoder, where)
    return model


def _require_known(name: str) -> None:
    """Refuse names that timm does not know, and tags that a model has no weights for."""
    import timm

    family, _, tag = name.partition(".")
    if not timm.is_model(family):
        ours = [
            known for pattern in ("vit_*", "deit*", "beit*") for known in timm.list_models(pattern)
        ]
        near = difflib.get_close_matches(family, ours, n=1, cutoff=0.5)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else "see timm.list_models('vit_*')"
        raise UserError(f"timm has no model {name!r}; {hint}")
    whole = timm.list_pretrained(f"{family}.*")
    if name not in whole and (tag or not whole):
        hint = f"it has {', '.join(whole[:8])}" if whole else "give a file of weights instead"
        raise UserError(f"timm has no pre-trained weights {name!r}; {hint}")


def _created(name: str, pretrained: bool) -> Any:
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, pretrained=pretrained)


def _pretrained(name: str) -> Any:
    """Fetch a model's weights, or say in one sentence what to do without a network."""
    try:
        with impatient():
            return _created(name, pretrained=True)
    except Exception as error:  # the hub, urllib, the disk and timm itself each have their own
        raise UserError(
            f"the weights of timm's {name} are not in the cache and could not be fetched "
            f"({first_line(error)}); without a network give a folder with the config.json and "
            "model.safetensors of its page on the hub"
        ) from error


def _require_ours(where: str, model: Any) -> None:
    """Refuse by a model's parts what its weights alone would not tell."""
    reason = reason_in_parts(model)
    if reason is not None:
        raise UserError(f"{where} is no encoder of beit's: {reason}")


@torch.no_grad()
def _require_same(theirs: Any, encoder: Encoder, where: str) -> None:
    """Both must give the same features of a picture of noise, after timm's last LayerNorm."""
    generator = torch.Generator().manual_seed(0)
    config = encoder.config
    images = torch.randn(1, config.channels, *config.image_size, generator=generator)
    expected = theirs.forward_features(images)
    differ = (theirs.norm(encoder(images).tokens) - expected).abs().max()
    if not differ <= TOLERANCE * expected.std().clamp_min(1.0):
        raise UserError(
            f"{where} is no encoder of beit's: with its weights ours computes features that "
            f"differ by {float(differ):.2g}"
        )
