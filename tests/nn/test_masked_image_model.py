"""Laws and learning of the pre-training model."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beit.batch import Masks
from beit.masking import blockwise_reference, place_list
from beit.nn.encoder import Encoder
from beit.nn.heads import MaskedPixelHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.presets import PresetName, encoder_config
from beit.objectives.masked import masked_token_loss

GRID = (4, 6)


def model_of(preset: PresetName, vocabulary: int = 11) -> MaskedImageModel:
    torch.manual_seed(0)
    config = encoder_config("digits", preset, (16, 24), (4, 4), width=24, depth=2)
    return MaskedImageModel(Encoder(config), MaskedTokenHead(24, vocabulary))


def masks_of(images: int, capacity: int) -> Masks:
    generator = np.random.default_rng(3)
    grids = [blockwise_reference(generator, GRID, count=9, minimum_block=4) for _ in range(images)]
    lists = [place_list(grid, capacity) for grid in grids]
    return Masks(
        torch.from_numpy(np.stack(grids)),
        torch.from_numpy(np.stack([index for index, _ in lists])),
        torch.from_numpy(np.stack([weight for _, weight in lists])),
    )


def _batch(images: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    pictures = torch.randn(images, 3, 16, 24, generator=generator)
    return pictures, torch.randint(0, 11, (images, 24), generator=generator)


@pytest.mark.parametrize("preset", ["paper", "plus"])
def test_masked_pixels_cannot_change_a_prediction(preset: PresetName) -> None:
    model, masks = model_of(preset).eval(), masks_of(3, 9)
    images, _ = _batch(3)
    hidden = masks.grid.repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    scrambled = torch.where(hidden, torch.full_like(images, 1e4), images)
    assert torch.equal(model(images, masks), model(scrambled, masks))


def test_predictions_stand_at_the_listed_places() -> None:
    model, masks = model_of("plus").eval(), masks_of(2, 9)
    images, _ = _batch(2)
    tokens = model.encoder(images, masks.grid).tokens
    everywhere = model.head(tokens[:, 1:])  # (B, N, K)
    torch.testing.assert_close(model(images, masks), masks.gather(everywhere))


@pytest.mark.parametrize("preset", ["paper", "plus"])
def test_padding_changes_neither_loss_nor_gradients(preset: PresetName) -> None:
    images, codes = _batch(3)
    results = []
    for capacity in (9, 14):
        model, masks = model_of(preset), masks_of(3, capacity)
        assert masks.index.shape == (3, capacity)
        loss, accuracy, total = masked_token_loss(
            model(images, masks), masks.gather(codes), masks.weight
        )
        loss.backward()  # type: ignore[no-untyped-call]
        results.append((loss, accuracy, total, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_listing_every_patch_and_masking_none_are_the_ablations() -> None:
    model = model_of("paper").eval()
    images, _ = _batch(2)
    index = torch.arange(24).expand(2, -1)
    masks = Masks(torch.zeros(2, *GRID, dtype=torch.bool), index, torch.ones(2, 24))
    torch.testing.assert_close(
        model(images, masks), model.head(model.encoder(images).tokens[:, 1:])
    )


def test_undecayed_parameters_are_this_models() -> None:
    model = model_of("paper")
    names = {name for name, _ in model.named_parameters()}
    assert model.undecayed_parameters() <= names
    assert "encoder.embeddings.positions" in model.undecayed_parameters()


def test_pixel_head_fits() -> None:
    model = MaskedImageModel(model_of("plus").encoder, MaskedPixelHead(24, 48))
    images, _ = _batch(2)
    assert model(images, masks_of(2, 9)).shape == (2, 9, 48)


def test_a_mere_grid_is_told_what_makes_masks_of_it() -> None:
    model, (images, _) = model_of("plus"), _batch(2)
    masks: Any = masks_of(2, 9).grid
    with pytest.raises(ValueError, match=r"Masks\.from_grid\(grid\)"):
        model(images, masks)


@pytest.mark.parametrize("preset", ["paper", "plus"])
def test_overfits_one_batch(preset: PresetName) -> None:
    model, masks = model_of(preset).train(), masks_of(4, 9)
    images, codes = _batch(4)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(200):
        optimiser.zero_grad()
        loss, accuracy, _ = masked_token_loss(
            model(images, masks), masks.gather(codes), masks.weight
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert loss < 0.05 and accuracy == 1.0
