"""The pictures and tables of a report that need a model: computed here, drawn by `beit.report`.

Legend: B pictures, (h, w) patch grid, N = h * w patches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.batch import ImageBatch, Masks
from beit.commands.assembly.build import choose_device, mask_plan, masked_image_model
from beit.commands.assembly.stage import prepared_batches
from beit.commands.assembly.unfinished import Progress
from beit.commands.planning.counting import encoder_work
from beit.data.sources.opening import Source
from beit.data.sources.subset import Subset
from beit.data.views.draws import MaskPlan
from beit.data.views.views import ViewSettings
from beit.errors import UserError
from beit.evaluation.neighbours import mean_pooled_features, neighbour_accuracy
from beit.nn.encoder import Encoder
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.patches import patchify, unpatchify
from beit.objectives.evidence_bound import code_counts
from beit.pixels import unnormalise
from beit.recipes.models import PretrainRecipe
from beit.report.figures import codebook_use
from beit.report.page import Figure
from beit.report.pictures import attention_page, masked_page, paint_masks, reconstruction_page
from beit.report.tables import Table
from beit.tokenizer.dvae import DiscreteVAE

SHOWN = 12
ASKING = 4  # pictures whose attention is shown
BATCH = 100
MOST_COUNTED = 5_000  # pictures; more do not change the curve of use
MOST_KNOWN = 20_000  # training pictures in which neighbours are looked for
LEAST_KNOWN = 500  # that is done however long it takes
KNOWN_TO_ASKED = 4  # training pictures for each other one
# FLOP of both models' features: about a minute or two, larger models apart.
BUDGET = {"cpu": 8e12, "cuda": 2e15}
NEIGHBOURS = 20


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of a report come from."""

    source: Source
    device: torch.device

    def batches(self, views: ViewSettings, masks: MaskPlan | None = None) -> Iterator[ImageBatch]:
        """Centre crops, without draws."""
        few = spread_over(self.source, MOST_COUNTED)
        return prepared_batches(few, views, masks, batch_size=BATCH, device=self.device)

    def some(self, views: ViewSettings, masks: MaskPlan | None = None) -> ImageBatch:
        """A few pictures spread evenly over the source.

        Raises:
            UserError: None of them can be read.
        """
        chosen = spread_over(self.source, SHOWN)
        batches = prepared_batches(chosen, views, masks, batch_size=SHOWN, device=self.device)
        found = next(batches, None)
        if found is None:
            raise UserError(
                f"not one of {len(chosen)} pictures looked at in {self.source.name} can be read"
            )
        return found


def spread_over(source: Source, most: int) -> Source:
    """At most so many pictures, evenly over a source that may be sorted by class."""
    count = min(most, len(source))
    return Subset(source, np.linspace(0, len(source) - 1, count).round().astype(np.int64))


def _token_views(model: DiscreteVAE) -> ViewSettings:
    return ViewSettings(token_view=model.image_size, random=False)


@torch.inference_mode()
def reconstruction_figure(model: DiscreteVAE, pictures: Pictures) -> Figure:
    """Pictures above what their hard codes give back."""
    originals = pictures.some(_token_views(model)).token_view
    assert originals is not None
    rebuilt = model.reconstruct(originals)
    page = reconstruction_page(_rows(originals), _rows(rebuilt))
    places = f"{model.grid[0]} x {model.grid[1]} codes of {model.vocabulary}"
    return Figure(page, f"Rebuilt from {places}.", "Originals above their reconstructions")


@torch.inference_mode()
def codebook_figure(model: DiscreteVAE, pictures: Pictures) -> Figure:
    """How often each code is used."""
    counts = torch.zeros(model.vocabulary)
    for batch in pictures.batches(_token_views(model)):
        assert batch.token_view is not None
        counts += code_counts(model.codes(batch.token_view), model.vocabulary).cpu()
    return Figure(codebook_use(counts.numpy()), "", "Use of each code, sorted")


@torch.inference_mode()
def masked_pixels_figure(
    recipe: PretrainRecipe, model: MaskedImageModel, pictures: Pictures
) -> Figure:
    """Masked pictures, and the same with the model's pixels at masked places."""
    views = ViewSettings(patch_view=recipe.encoder.image_size, random=False)
    batch = pictures.some(views, mask_plan(recipe))
    assert batch.patch_view is not None and batch.masks is not None
    size = model.encoder.config.patch_size
    patches = patchify(batch.patch_view, size)  # (B, N, P)
    predicted = model(batch.patch_view, batch.masks)  # (B, M, P)
    filled = _put_in(patches, predicted, batch.masks)
    originals = _rows(unnormalise(batch.patch_view))
    page = masked_page(
        originals,
        paint_masks(originals, batch.masks.grid.cpu().numpy()),
        _rows(unnormalise(unpatchify(filled, size, recipe.encoder.image_size))),
    )
    caption = "Visible patches are the picture's own; the model's pixels are means of what may be."
    return Figure(page, caption, "Masked pictures and predictions")


@torch.inference_mode()
def masked_figure(
    recipe: PretrainRecipe, model: MaskedImageModel, tokenizer: DiscreteVAE, pictures: Pictures
) -> Figure:
    """Masked pictures and what the model fills in."""
    grid = model.encoder.config.grid
    views = ViewSettings(
        patch_view=recipe.encoder.image_size,
        token_view=tokenizer.config.view_size(grid),
        random=False,
    )
    batch = pictures.some(views, mask_plan(recipe))
    assert batch.patch_view is not None and batch.token_view is not None and batch.masks is not None
    codes = tokenizer.codes(batch.token_view)  # (B, h, w)
    filled = fill_in(model, batch, codes)
    originals = _rows(unnormalise(batch.patch_view))
    page = masked_page(
        originals,
        paint_masks(originals, batch.masks.grid.cpu().numpy()),
        _rows(_decoded(tokenizer, filled)),
        _rows(_decoded(tokenizer, codes)),
    )
    caption = "The last column is the best that any prediction could look like."
    return Figure(page, caption, "Masked pictures and predictions")


@torch.inference_mode()
def attention_figure(recipe: PretrainRecipe, model: MaskedImageModel, pictures: Pictures) -> Figure:
    """Where two patches of each of a few pictures attend in the last block (paper, figure 2)."""
    views = ViewSettings(patch_view=recipe.encoder.image_size, random=False)
    batch = pictures.some(views)
    assert batch.patch_view is not None
    images = batch.patch_view[:ASKING]
    height, width = model.encoder.config.grid
    asked = [(height // 3, width // 3), (2 * height // 3, 2 * width // 3)]
    places = [1 + row * width + column for row, column in asked]  # the special token comes first
    attention = model.encoder.attention_maps(images, layer=-1)  # (B, heads, 1 + N, 1 + N)
    maps = attention[:, :, places, 1:].transpose(1, 2).flatten(0, 1)  # (2 B, heads, N)
    page = attention_page(
        _rows(unnormalise(images)).repeat(len(asked), axis=0),
        maps.view(*maps.shape[:2], height, width).cpu().numpy(),
        queries=np.array(asked * len(images)),
    )
    caption = "The framed patch asks; each map is scaled to its own largest value."
    return Figure(page, caption, "Attention of the last block")


def fill_in(model: MaskedImageModel, batch: ImageBatch, codes: Tensor) -> Tensor:
    """The (B, h, w) codes with the most likely ones at masked places."""
    assert batch.patch_view is not None and batch.masks is not None
    predicted = model(batch.patch_view, batch.masks).argmax(-1)  # (B, M)
    return _put_in(codes.flatten(1), predicted, batch.masks).view_as(codes)


def _put_in(values: Tensor, predicted: Tensor, masks: Masks) -> Tensor:
    """(B, N, ...) values with the (B, M, ...) predicted ones at masked places."""
    real = masks.weight > 0
    rows = torch.arange(len(values), device=values.device)[:, None].expand_as(masks.index)
    filled = values.clone()
    filled[rows[real], masks.index[real]] = predicted[real]
    masked = masks.grid.flatten(1).view(*values.shape[:2], *(1,) * (values.dim() - 2))
    return torch.where(masked, filled, values)  # the model may be asked for visible places too


def neighbour_table(
    recipe: PretrainRecipe, model: MaskedImageModel, train: Source, validation: Source
) -> Table | None:
    """Nearest-neighbour accuracy by layer, trained against untrained.

    None where a picture has no class: photos may lie partly loose and partly in folders.
    """
    device = choose_device(None)
    known, asked = affordable(encoder_work(recipe).forward, device)
    train, validation = spread_over(train, known), spread_over(validation, asked)
    if any(part.label(index) < 0 for part in (train, validation) for index in range(len(part))):
        return None
    progress = Progress("pictures for nearest neighbours", 2 * (len(train) + len(validation)))
    untrained = masked_image_model(recipe, vocabulary=2).encoder
    depth = model.encoder.config.depth
    layers = sorted({round((depth - 1) * part / 3) for part in (0, 1, 2, 3)})
    columns = [
        _neighbour_accuracies(recipe, encoder.to(device), (train, validation), layers, progress)
        for encoder in (model.encoder, untrained)
    ]
    rows = [
        [f"{layer + 1} of {depth}", f"{columns[0][layer]:.1%}", f"{columns[1][layer]:.1%}"]
        for layer in layers
    ]
    count = min(NEIGHBOURS, len(train))
    caption = f"{count} nearest neighbours, {len(train)} training, {len(validation)} other"
    return Table(["features after block", "pre-trained", "untrained"], rows, caption)


def affordable(forward: float, device: torch.device) -> tuple[int, int]:
    """Training and other pictures that a report has the time for.

    Args:
        forward: FLOP of one picture.
        device: Where they are computed.
    """
    pictures = BUDGET[device.type] / (2 * forward)
    known = round(pictures * KNOWN_TO_ASKED / (KNOWN_TO_ASKED + 1))
    known = min(MOST_KNOWN, max(LEAST_KNOWN, known))
    return known, min(MOST_COUNTED, known // KNOWN_TO_ASKED)


def _neighbour_accuracies(
    recipe: PretrainRecipe,
    encoder: Encoder,
    sources: tuple[Source, Source],
    layers: list[int],
    progress: Progress,
) -> dict[int, float]:
    views = ViewSettings(patch_view=recipe.encoder.image_size, random=False)
    device = next(encoder.parameters()).device

    def batches(source: Source) -> Iterator[ImageBatch]:
        for batch in prepared_batches(source, views, batch_size=BATCH, device=device):
            yield batch
            progress.add(len(batch.index))

    known, asked = (
        mean_pooled_features(encoder, batches(source), device, layers) for source in sources
    )
    count = min(NEIGHBOURS, len(known[layers[0]].labels))
    return {
        layer: neighbour_accuracy(known[layer], asked[layer], [count])[count] for layer in layers
    }


def _decoded(tokenizer: DiscreteVAE, codes: Tensor) -> Tensor:
    return tokenizer.mean_pixels(tokenizer.decode_codes(codes))


def picture_rows(images: Tensor) -> NDArray[np.float32]:
    """(B, 3, H, W) normalised pictures as (B, H, W, 3) in [0, 1], for a page."""
    return _rows(unnormalise(images))


def _rows(images: Tensor) -> NDArray[np.float32]:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) on the host."""
    rows: NDArray[np.float32] = images.float().permute(0, 2, 3, 1).cpu().numpy()
    return rows
