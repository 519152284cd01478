"""Other people's models, whole, as ours are."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from beit.interop.models import ForeignModel
from beit.nn.classifier import Classifier
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.segmenter import Segmenter


def whole(found: ForeignModel) -> Segmenter | Classifier | MaskedImageModel | Encoder:
    """The model that a file held, in evaluation mode."""
    if found.segmenter is not None:
        return found.segmenter.eval()
    if found.head is None:
        return found.encoder
    if isinstance(found.head, ClassifierHead):
        classifier = Classifier(found.encoder, found.head, found.labels)
        classifier.view = dict(facts_of(found).get("view", {}))
        return classifier.eval()
    return MaskedImageModel(found.encoder, found.head).eval()


def head_of(segmenter: Segmenter) -> nn.ModuleDict:
    """What a segmenter has beside its encoder."""
    parts = {"decoder": segmenter.decoder, "auxiliary": segmenter.auxiliary}
    return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})


def facts_of(found: ForeignModel) -> dict[str, Any]:
    """What a config.json of ours would say besides: how a picture is cut or seen."""
    if found.segmenter is not None:
        return _segmenting(found.prepared.segmenting, found.segmenter.classes)
    share = found.prepared.centre_share
    return {} if share is None else {"view": {"centre_share": share}}


def _segmenting(told: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Without colours where they are not one for each class."""
    palette = told.get("palette")
    few = palette is not None and len(palette) < classes
    return {name: value for name, value in told.items() if not (few and name == "palette")}
