from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from beit.batch import ColourDraws, ImageBatch
from beit.data.views.augment import augment, prepare
from beit.data.views.draws import Key, colour_draws
from beit.pixels import PIXEL_MEAN, PIXEL_STD, normalise
from cuda_sync import never_asked

OPERATIONS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
)


def _one_at_a_time(images: Tensor, draws: ColourDraws) -> Tensor:
    """torchvision's operations, sample by sample, in each sample's own order."""
    factors = torch.stack([draws.brightness, draws.contrast, draws.saturation], 1)
    done = []
    for row, image in enumerate(images):
        for operation in draws.order[row].tolist():
            image = OPERATIONS[operation](image, float(factors[row, operation]))
        done.append(functional.horizontal_flip(image) if draws.flip[row] else image)
    return torch.stack(done)


def _draws(count: int, jitter: float = 0.4) -> ColourDraws:
    return colour_draws([Key(1, 0, index) for index in range(count)], jitter, flip=True)


@pytest.mark.parametrize("jitter", [0.0, 0.4, 1.5])
def test_the_batch_gets_what_torchvision_gives_each_sample(jitter: float) -> None:
    images = torch.rand(24, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    draws = _draws(24, jitter)
    assert draws.flip.any() and not draws.flip.all()
    torch.testing.assert_close(
        augment(images, draws), _one_at_a_time(images, draws), atol=1e-5, rtol=0
    )


def test_both_views_get_the_same_draws_and_only_the_encoders_is_normalised() -> None:
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    where = torch.arange(6)
    batch = ImageBatch(where, where, patch_view=pixels, token_view=pixels, colour=_draws(6))
    ready = prepare(batch)
    assert ready.patch_view is not None and ready.token_view is not None
    assert 0 <= ready.token_view.min() and ready.token_view.max() <= 1
    expected = functional.normalize(ready.token_view, list(PIXEL_MEAN), list(PIXEL_STD))
    torch.testing.assert_close(ready.patch_view, expected)
    torch.testing.assert_close(ready.token_view, augment(pixels.float() / 255, batch.colour))
    assert batch.patch_view is pixels and ready.colour is None


def test_the_classes_of_the_pixels_are_flipped_with_the_picture_and_nothing_else() -> None:
    """Each picture is its own mask, in grey: what happens to one must happen to the other."""
    target = torch.randint(0, 250, (12, 5, 7), dtype=torch.uint8)
    draws = colour_draws([Key(1, 0, index) for index in range(12)], 0.0, flip=True)
    where, pixels = torch.arange(12), target[:, None].expand(-1, 3, -1, -1)
    ready = prepare(ImageBatch(where, where, pixels, target=target, colour=draws))
    assert draws.flip.any() and not draws.flip.all()
    assert ready.patch_view is not None and ready.target is not None
    assert ready.target.dtype == torch.uint8
    red = ready.patch_view[:, 0] * PIXEL_STD[0] + PIXEL_MEAN[0]
    assert torch.equal((red * 255).round().to(torch.uint8), ready.target)
    kept = prepare(ImageBatch(where, where, pixels, target=target)).target
    assert kept is target, "without draws it stays as it is"
    jittered = replace(_draws(12), flip=draws.flip)
    again = prepare(ImageBatch(where, where, pixels, target=target, colour=jittered)).target
    assert again is not None and torch.equal(again, ready.target), "colour is none of its business"


def test_without_draws_pixels_are_only_scaled() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    ready = prepare(ImageBatch(torch.arange(2), torch.arange(2), token_view=pixels))
    assert ready.patch_view is None and ready.token_view is not None
    assert torch.equal((ready.token_view * 255).round().to(torch.uint8), pixels)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    images, draws = torch.rand(5, 3, 6, 6), _draws(5)
    whole = augment(images, draws)
    alone = ColourDraws(
        draws.flip[3:4],
        draws.brightness[3:4],
        draws.contrast[3:4],
        draws.saturation[3:4],
        draws.order[3:4],
    )
    torch.testing.assert_close(augment(images[3:4], alone), whole[3:4], rtol=0, atol=1e-6)


def test_preparing_twice_is_noticed() -> None:
    ready = prepare(
        ImageBatch(torch.arange(1), torch.arange(1), torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    )
    with pytest.raises(AssertionError, match="already"):
        prepare(ready)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_is_one_graph_for_torch_compile(backend: str) -> None:
    """Silently so: a warning fails a test."""
    pixels = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8)
    target = torch.randint(0, 250, (5, 8, 6), dtype=torch.uint8)
    where = torch.arange(5)
    batch = ImageBatch(where, where, pixels, pixels, colour=_draws(5), target=target)
    torch.compiler.reset()
    found = torch.compile(prepare, fullgraph=True, backend=backend)(batch)
    expected = prepare(batch)
    for name in ("patch_view", "token_view", "target"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.gpu
def test_the_device_is_never_asked() -> None:
    device = torch.device("cuda")
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    batch = ImageBatch(torch.arange(8), torch.arange(8), pixels, pixels, colour=_draws(8))
    moved = batch.to(device)
    first = prepare(moved)
    with never_asked():
        again = prepare(replace(moved))
    host = prepare(batch)
    assert first.patch_view is not None and host.patch_view is not None
    assert again.patch_view is not None
    torch.testing.assert_close(again.patch_view.cpu(), host.patch_view, atol=1e-4, rtol=0)


def test_normalise_is_torchvisions() -> None:
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(
        normalise(images), functional.normalize(images, list(PIXEL_MEAN), list(PIXEL_STD))
    )
