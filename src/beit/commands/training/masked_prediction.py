"""What a model predicts at masked places, measured: during pre-training and of finished runs."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from beit.batch import ImageBatch
from beit.commands.assembly.build import encoder_config_of, mask_plan, view_settings
from beit.commands.assembly.own_tokenizer import RunTokenizer, view_size
from beit.data.views.draws import MaskPlan
from beit.data.views.views import ViewSettings
from beit.evaluation.masked_pixels import evaluate_masked_pixels
from beit.evaluation.masked_prediction import evaluate_masked_prediction
from beit.nn.masked_image_model import MaskedImageModel
from beit.recipes.models import PretrainRecipe
from beit.tasks.pretrain import Pixels, VisualTokens
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.protocol import Tokenizer
from beit.tokenizer.reading import TokenReader


def evaluation_looks(
    recipe: PretrainRecipe, tokenizer: RunTokenizer | None
) -> tuple[ViewSettings, MaskPlan]:
    """How pictures are cut and masked to measure what a recipe predicts."""
    grid = encoder_config_of(recipe.encoder).grid
    views = view_settings(
        recipe.views,
        patch_view=recipe.encoder.image_size,
        token_view=None if tokenizer is None else view_size(tokenizer, grid),
        random=False,
    )
    return views, replace(mask_plan(recipe), recover="masked")


def masked_prediction(
    model: MaskedImageModel, tokenizer: Tokenizer | None, batches: Iterator[ImageBatch]
) -> dict[str, float]:
    """Measure a model's masked prediction, and the baselines, over prepared batches.

    Args:
        model: In evaluation mode, where the batches are.
        tokenizer: Whose codes are predicted; None where pixels are.
        batches: With masks and the views that are needed.
    """

    def predict(batch: ImageBatch) -> Tensor:
        assert batch.patch_view is not None and batch.masks is not None
        prediction: Tensor = model(batch.patch_view, batch.masks)
        return prediction

    if tokenizer is None:
        config = model.encoder.config
        found = evaluate_masked_pixels(
            batches, predict, Pixels(config.patch_size).of, config.patch_values, config.channels
        ).metrics()
    else:
        # A last batch of one picture has the codes that it has among others.
        alike = TokenReader(tokenizer) if isinstance(tokenizer, DiscreteVAE) else tokenizer
        target = VisualTokens(alike)

        def codes(batch: ImageBatch) -> Tensor:
            assert batch.masks is not None
            return target.of(batch).view(batch.masks.grid.shape)

        vocabulary = tokenizer.vocabulary
        found = evaluate_masked_prediction(batches, predict, codes, vocabulary).metrics()
    return {name: float(value) for name, value in found.items()}
