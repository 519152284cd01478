"""From pictures to what a model takes, cut as for predictions and evaluations."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from beit.commands.assembly.saved_models import Model
from beit.commands.using.finished import read_whole, views_of
from beit.data.decoding.decode import pixels_of
from beit.data.sources.given import Given, given_pictures
from beit.data.views.draws import Key
from beit.data.views.views import ViewSettings, make_views
from beit.errors import UserError
from beit.evaluation.dense_inference import shown
from beit.interop.hub import located
from beit.nn.classifier import Classifier
from beit.nn.encoder import Encoder
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.segmenter import Segmenter
from beit.pixels import normalise
from beit.tokenizer.dvae import DiscreteVAE

_NO_CHANCE = Key(0, 0, 0)


def view_of(picture: Image.Image, views: ViewSettings) -> Tensor:
    """What is cut out of a picture, (3, H, W) uint8."""
    patch_view, token_view = make_views(picture, views, _NO_CHANCE)
    found = token_view if patch_view is None else patch_view
    assert found is not None
    return found


def batch_of(cut: Sequence[Tensor], views: ViewSettings, device: torch.device) -> Tensor:
    """What was cut out as (B, 3, H, W) floats: normalised for an encoder, not for a tokenizer."""
    images = torch.stack(list(cut)).to(device).float() / 255
    return images if views.patch_view is None else normalise(images)


def inputs(model: str | Path | Model, pictures: Given | Sequence[Given]) -> Tensor:
    """Pictures as a model takes them, in their order: cut, resized and scaled as by `beit predict`.

        model = beit.load("runs/cls")
        logits = model(beit.inputs(model, "holiday/"))  # of a folder, by their paths

    A classifier gets the crop from the middle that it is measured on, encoders and pre-trained
    models the largest, all normalised; a tokenizer that largest crop in [0, 1]. A segmenter gets
    the whole picture squeezed, which is its `mode="whole"`; by default `beit.predict` has it look
    through several windows instead, which no one tensor holds.

    Args:
        model: What `beit.load` gave, or a run or whatever else `beit.predict` takes; a run is read
            anew by each call.
        pictures: A file, a folder or a pattern, a picture of Pillow's, an array (H, W, 3), (H, W)
            or (N, H, W, 3) of uint8, or a list of such, each as often as it is given. All are
            held in memory.

    Returns:
        (B, 3, H, W) float32, on the model's device.

    Raises:
        UserError: There is no such model, or a picture cannot be read.
    """
    if not isinstance(model, nn.Module):
        model, _ = read_whole(located(model))
    elif not isinstance(model, (DiscreteVAE, MaskedImageModel, Classifier, Segmenter, Encoder)):
        raise UserError(
            f"how pictures are cut for a {type(model).__name__} is not known: give a model that "
            "beit.load gave, or a run"
        )
    device = next(model.parameters()).device
    read = (picture.read() for picture in given_pictures(pictures))
    if isinstance(model, Segmenter):
        size = model.encoder.config.image_size
        return torch.stack([shown(pixels_of(picture), size, device) for picture in read])
    views = views_of(model, getattr(model, "view", {}))
    return batch_of([view_of(picture, views) for picture in read], views, device)
