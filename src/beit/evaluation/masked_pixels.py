"""How well masked pixels are predicted, against guesses that need no learning.

Errors are squared, means over the values of the masked patches, in the units of the target: pixels
less ImageNet's mean colour, by its deviations, so that predicting its mean colour is predicting 0.
Legend: B images, (h, w) patch grid, N = h * w patches, M listed places, P pixels times colours.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from beit.batch import ImageBatch, Masks
from beit.errors import UserError
from beit.evaluation.masked_prediction import nearest_visible
from beit.evaluation.ranks import summed_over_ranks


@dataclass(frozen=True)
class MaskedPixels:
    """The result over a whole evaluation set."""

    pictures: int
    places: int  # masked patches that were predicted
    loss: float  # mean squared error
    zero_loss: float  # of ImageNet's mean colour
    constant_loss: float  # the least that one and the same patch could have everywhere
    mean_colour_loss: float  # of the mean colour of the picture's visible patches
    neighbour_copy_loss: float  # of the nearest visible patch
    explained: float  # share of the constant loss that is gone: 1 - loss / constant_loss

    def metrics(self) -> dict[str, float]:
        """The values by name, for a metrics file or a table."""
        return asdict(self)


@torch.inference_mode()
def evaluate_masked_pixels(
    batches: Iterable[ImageBatch],
    predict: Callable[[ImageBatch], Tensor],
    pixels: Callable[[ImageBatch], Tensor],
    values: int,
    channels: int = 3,
) -> MaskedPixels:
    """Measure masked-pixel prediction and its baselines over a whole set.

    With a process group every rank must call this with its share of the set.

    Args:
        batches: Prepared batches with masks, already where the callables want them.
        predict: Gives (B, M, P) pixels of the listed places; in evaluation mode, which is the
            caller's to see to.
        pixels: Gives the true pixels (B, N, P) of all places, as `beit.nn.patches.patchify`.
        values: P.
        channels: Colours; they come first inside a patch.

    Raises:
        UserError: There is no picture, or no place is masked in the whole set.
    """
    numbers = torch.zeros(6, dtype=torch.float64)
    first = torch.zeros(values, dtype=torch.float64)  # summed over masked patches, by value
    for batch in batches:
        assert batch.masks is not None, "masked prediction needs masks"
        true = pixels(batch).float()
        found = _sums_of(batch.masks, predict(batch).float(), true, channels)
        numbers, first = numbers.to(true.device) + found[0], first.to(true.device) + found[1]
    return _result(*summed_over_ranks(numbers, first))


def _sums_of(
    masks: Masks, predicted: Tensor, pixels: Tensor, channels: int
) -> tuple[Tensor, Tensor]:
    """(6,) pictures, places and the summed squares of four guesses; (P,) summed pixels."""
    target, weight = masks.gather(pixels), masks.weight.double()  # (B, M, P), (B, M)
    assert predicted.shape == target.shape, "predictions are (B, M, P)"
    guesses = (
        predicted,
        torch.zeros_like(target),
        _mean_colour(pixels, masks.grid, channels),
        masks.gather(_copies(pixels, masks.grid)),
    )
    squares = [
        ((target - guess).square().sum(2, dtype=torch.float64) * weight).sum() for guess in guesses
    ]
    counted = torch.full_like(squares[0], len(pixels)), weight.sum()
    return torch.stack((*counted, *squares)), (target * weight.unsqueeze(2)).sum((0, 1))


def _mean_colour(pixels: Tensor, mask: Tensor, channels: int) -> Tensor:
    """(B, 1, P) the mean colour of each picture's visible patches; 0 where there are none."""
    colours = pixels.view(*pixels.shape[:2], channels, -1).mean(3)  # (B, N, C)
    visible = (~mask).flatten(1).float()
    mean = (colours * visible.unsqueeze(2)).sum(1) / visible.sum(1).clamp_min(1).unsqueeze(1)
    return mean.repeat_interleave(pixels.shape[2] // channels, dim=1).unsqueeze(1)


def _copies(pixels: Tensor, mask: Tensor) -> Tensor:
    """(B, N, P) the nearest visible patch of each patch; 0 in pictures without any."""
    nearest = nearest_visible(mask).unsqueeze(2)
    copied = pixels.gather(1, nearest.clamp(min=0).expand_as(pixels))
    return torch.where(nearest < 0, 0.0, copied)


def _result(numbers: Tensor, first: Tensor) -> MaskedPixels:
    pictures, places, *squares = numbers.tolist()
    if not pictures:
        raise UserError("There is no picture to evaluate on: the data set is empty.")
    if not places:
        raise UserError("No patch is masked in the whole set: set a mask ratio above zero.")
    loss, zero, colour, copy = (square / (places * len(first)) for square in squares)
    constant = max(0.0, zero - float((first / places).square().mean()))
    return MaskedPixels(
        pictures=round(pictures),
        places=round(places),
        loss=loss,
        zero_loss=zero,
        constant_loss=constant,
        mean_colour_loss=colour,
        neighbour_copy_loss=copy,
        explained=1 - loss / constant if constant else 0.0,
    )
