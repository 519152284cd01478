"""What a batch is made of: views of pictures, pieces of pictures with their masks, whole ones.

Each kind makes a sample from a picture's number and the sample's key, and a batch from samples;
order, workers, ranks and bad pictures are the loader's and the same for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.batch import ColourDraws, ImageBatch
from beit.data.decoding.decode import BadPicture, pixels_of
from beit.data.pairs.pairs import PairSource
from beit.data.reading.fetch import WatchedReader
from beit.data.views.draws import Key, MaskPlan, colour_draws, draw_masks
from beit.data.views.joint_views import JointViewSettings, make_joint_view
from beit.data.views.views import ViewSettings, make_views

Sample = TypeVar("Sample")


class Kind(Protocol[Sample]):
    """What is made of the pictures."""

    reader: WatchedReader

    def sample(self, index: int, key: Key, /) -> Sample:
        """Picture `index` with the chance of `key`; raises `BadPicture`."""

    def batch(self, keys: list[Key], samples: list[Sample], /) -> ImageBatch:
        """Stack samples and add what is drawn for them."""


class Codes(Protocol):
    """Visual tokens that were computed before (`beit.tokenizer.bank`)."""

    def read(self, views: Sequence[int], indices: Sequence[int], /) -> Tensor:
        """The codes of these views of these pictures, (B, h, w) int64."""


@dataclass(frozen=True)
class Viewed:
    """A picture's two views and its class."""

    patch_view: Tensor | None
    token_view: Tensor | None
    label: int


@dataclass
class Views:
    """Views of pictures, with masked patches and with codes where wanted."""

    reader: WatchedReader
    views: ViewSettings
    masks: MaskPlan | None
    codes: Codes | None = None

    def sample(self, index: int, key: Key, /) -> Viewed:
        """The views and the label of a picture."""
        pixels = self.reader.pixels(index)
        return Viewed(*make_views(pixels, self.views, key), self.reader.source.label(index))

    def batch(self, keys: list[Key], samples: list[Viewed], /) -> ImageBatch:
        """Views, colour, masks, codes and labels."""
        index, epoch = _identity(keys)
        places = [key.view for key in keys], [key.index for key in keys]
        jitter, flip = self.views.jitter, self.views.flip
        return ImageBatch(
            index,
            epoch,
            patch_view=_stacked([sample.patch_view for sample in samples]),
            token_view=_stacked([sample.token_view for sample in samples]),
            colour=colour_draws(keys, jitter, flip=flip) if self.views.augments else None,
            masks=None if self.masks is None else draw_masks(self.masks, keys),
            codes=None if self.codes is None else self.codes.read(*places),
            label=torch.tensor([sample.label for sample in samples]),
        )


@dataclass(frozen=True)
class Paired:
    """A picture (3, H, W), or a piece of it, and the class of each pixel (H, W), both uint8."""

    image: Tensor
    mask: Tensor


@dataclass
class Pieces:
    """Crops of pictures together with their masks."""

    reader: WatchedReader
    source: PairSource
    views: JointViewSettings

    def sample(self, index: int, key: Key, /) -> Paired:
        """A piece of a picture and of its mask."""
        image, mask = _read_pair(self.reader, self.source, index)
        return Paired(*make_joint_view(image, mask, self.views, key))

    def batch(self, keys: list[Key], samples: list[Paired], /) -> ImageBatch:
        """Pieces and colour."""
        jitter, flip = self.views.jitter, self.views.flip
        colour = colour_draws(keys, jitter, flip=flip) if self.views.augments else None
        return _paired_batch(keys, samples, colour)


@dataclass
class WholePairs:
    """Pictures and masks as they are; of one size within a batch."""

    reader: WatchedReader
    source: PairSource

    def sample(self, index: int, key: Key, /) -> Paired:
        """A picture and its mask."""
        image, mask = _read_pair(self.reader, self.source, index)
        return Paired(pixels_of(image).contiguous(), torch.from_numpy(mask))

    def batch(self, keys: list[Key], samples: list[Paired], /) -> ImageBatch:
        """Pictures and masks."""
        return _paired_batch(keys, samples, None)


def _read_pair(
    reader: WatchedReader, source: PairSource, index: int
) -> tuple[Image.Image, NDArray[np.uint8]]:
    with reader.watching(index):
        image, mask = source.read(index), source.mask(index)
    if mask.shape != (image.height, image.width):
        height, width = mask.shape
        raise BadPicture(f"{image.width} x {image.height} pixels, its mask {width} x {height}")
    return image, mask


def _paired_batch(keys: list[Key], samples: list[Paired], colour: ColourDraws | None) -> ImageBatch:
    index, epoch = _identity(keys)
    return ImageBatch(
        index,
        epoch,
        patch_view=torch.stack([sample.image for sample in samples]),
        colour=colour,
        target=torch.stack([sample.mask for sample in samples]),
    )


def _identity(keys: list[Key]) -> tuple[Tensor, Tensor]:
    return torch.tensor([key.index for key in keys]), torch.tensor([key.epoch for key in keys])


def _stacked(views: Sequence[Tensor | None]) -> Tensor | None:
    """(B, 3, H, W) in (B, H, W, 3) memory, as the views are: the device puts the colours first."""
    present = [view.permute(1, 2, 0) for view in views if view is not None]
    return torch.stack(present).permute(0, 3, 1, 2) if present else None
