"""Windows cover every pixel, average what overlaps, and give masks of the picture's size."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from beit.errors import UserError
from beit.evaluation import dense_inference
from beit.evaluation.dense_inference import (
    DenseSettings,
    dense_classes,
    dense_probabilities,
    enlarged,
    scaled_size,
    window_starts,
)
from beit.pixels import PIXEL_MEAN, PIXEL_STD

CPU = torch.device("cpu")
CLASSES = 4
SLIDE = DenseSettings(size=(12, 16), short_side=24)
Model = Callable[[Tensor], Tensor]


def _picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def _normalised(image: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    return (image.float() / 255 - mean) / deviation


def per_pixel(images: Tensor) -> Tensor:
    """Each pixel's logits are a function of that pixel alone."""
    mix = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [-1.0, 0.2, 2.0], [0.0, 0.7, 0.1]])
    return functional.conv2d(images, mix[:, :, None, None]) + 0.3 * images[:, :1] ** 2


def looking_around(images: Tensor) -> Tensor:
    """Logits depend on the neighbours, on the place in the window and on which side is left."""
    weight = torch.randn(CLASSES, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    ramp = torch.linspace(0, 1, images.shape[-1])
    return functional.conv2d(images, weight, padding=2) * (0.5 + ramp)


def coarse(images: Tensor) -> Tensor:
    return functional.avg_pool2d(looking_around(images), 4)


def _assert_probabilities(found: Tensor, image: Tensor) -> None:
    assert found.shape == (CLASSES, *image.shape[1:]) and found.dtype == torch.float32
    assert found.isfinite().all() and (found >= 0).all()
    torch.testing.assert_close(found.sum(0), torch.ones(image.shape[1:]), atol=1e-5, rtol=0)


def test_a_model_of_single_pixels_gives_the_same_through_windows_and_whole() -> None:
    image = _picture(24, 31)
    expected = per_pixel(_normalised(image)[None])[0].softmax(0)
    slid = dense_probabilities(per_pixel, image, SLIDE, CPU)
    whole = dense_probabilities(per_pixel, image, DenseSettings((24, 31), 1, mode="whole"), CPU)
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(slid, expected)
    flipped = dense_probabilities(per_pixel, image, replace(SLIDE, flip=True), CPU)
    torch.testing.assert_close(flipped, expected)


@pytest.mark.parametrize("model", [looking_around, coarse])
@pytest.mark.parametrize("share", [2 / 3, 0.3, 1.0])
def test_overlapping_windows_are_the_mean_of_their_logits(model: Model, share: float) -> None:
    """Written out: one window after the other, each pixel counting who saw it."""
    image, (rows, columns) = _picture(24, 37), SLIDE.size
    found = dense_probabilities(model, image, replace(SLIDE, stride_share=share), CPU)
    pixels = _normalised(image)
    sums, counts = torch.zeros(CLASSES, 24, 37), torch.zeros(24, 37)
    for top in _starts_written_out(24, rows, int(rows * share + 1e-6)):
        for left in _starts_written_out(37, columns, int(columns * share + 1e-6)):
            window = pixels[None, :, top : top + rows, left : left + columns]
            logits = functional.interpolate(model(window), (rows, columns), mode="bilinear")[0]
            sums[:, top : top + rows, left : left + columns] += logits
            counts[top : top + rows, left : left + columns] += 1
    torch.testing.assert_close(found, (sums / counts).softmax(0), atol=1e-5, rtol=1e-4)


def _starts_written_out(length: int, window: int, stride: int) -> list[int]:
    """As the reference's toolbox counts them."""
    grids = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(place * stride + window, length) for place in range(grids)]
    return [max(end - window, 0) for end in ends]


@pytest.mark.parametrize("window", [1, 5, 12])
@pytest.mark.parametrize("share", [0.1, 0.5, 2 / 3, 1.0])
def test_windows_cover_every_place_and_end_at_the_edge(window: int, share: float) -> None:
    stride = max(1, int(window * share + 1e-6))
    for length in range(window, 4 * window + 3):
        starts = window_starts(length, window, share)
        assert starts == _starts_written_out(length, window, stride)
        covered = {start + place for start in starts for place in range(window)}
        assert covered == set(range(length)) and starts[-1] + window == length
    assert window_starts(512 + 341, 512, 2 / 3) == [0, 341], "the reference's stride"


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_constant_logits_stay_constant(mode: Any) -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0])

    def constant(images: Tensor) -> Tensor:
        return logits[:, None, None].expand(len(images), -1, 3, 5)

    settings = replace(SLIDE, mode=mode, flip=True)
    found = dense_probabilities(constant, _picture(29, 50), settings, CPU)
    expected = logits.softmax(0)[:, None, None].expand_as(found)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", ["slide", "whole"])
@pytest.mark.parametrize("model", [looking_around, coarse])
def test_a_mirrored_picture_gives_the_mirrored_answer(mode: Any, model: Model) -> None:
    """With both looks averaged, however one-sided the model is."""
    image, settings = _picture(24, 37), replace(SLIDE, mode=mode, flip=True)
    found = dense_probabilities(model, image, settings, CPU)
    mirrored = dense_probabilities(model, image.flip(-1), settings, CPU).flip(-1)
    torch.testing.assert_close(found, mirrored, atol=2e-2 if mode == "whole" else 1e-6, rtol=0)
    one_sided = replace(settings, flip=False)
    found = dense_probabilities(model, image, one_sided, CPU)
    mirrored = dense_probabilities(model, image.flip(-1), one_sided, CPU).flip(-1)
    assert (found - mirrored).abs().max() > 0.1


def test_several_scales_are_the_mean_of_their_probabilities() -> None:
    image = _picture(24, 30)
    alone = [
        dense_probabilities(coarse, image, replace(SLIDE, scales=(scale,)), CPU)
        for scale in (0.75, 1.0, 1.5)
    ]
    assert (alone[0] - alone[1]).abs().max() > 0.1
    found = dense_probabilities(coarse, image, replace(SLIDE, scales=(0.75, 1.0, 1.5)), CPU)
    torch.testing.assert_close(found, torch.stack(alone).mean(0))


def test_logits_and_not_probabilities_are_enlarged() -> None:
    """As in training, and as the reference's toolbox does: the softmax comes last."""
    image, small = _picture(24, 30), (12, 15)
    found = dense_probabilities(coarse, image, DenseSettings(small, 1, mode="whole"), CPU)
    seen = functional.interpolate(
        image[None], small, mode="bicubic", align_corners=False, antialias=True
    )[0]
    logits = functional.interpolate(coarse(_normalised(seen)[None]), small, mode="bilinear")
    expected = functional.interpolate(logits, (24, 30), mode="bilinear")[0].softmax(0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


SIZES = [(1, 1), (1, 300), (300, 1), (5, 7), (24, 24), (240, 11), (61, 200), (400, 300)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_any_size_in_the_same_size_out(size: tuple[int, int], mode: Any) -> None:
    image = _picture(*size)
    settings = replace(SLIDE, mode=mode, flip=True, scales=(1.0,) if mode == "whole" else (0.5, 2))
    sizes = set()

    def watched(images: Tensor) -> Tensor:
        sizes.add(images.shape[1:])
        return coarse(images)

    found = dense_probabilities(watched, image, settings, CPU)
    _assert_probabilities(found, image)
    assert sizes == {(3, 12, 16)}, "the model sees one size alone"
    assert torch.equal(dense_classes(coarse, image, settings, CPU), found.argmax(0).byte())


def test_what_surrounds_a_small_picture_is_the_mean_colour() -> None:
    image, seen = _picture(6, 9), []

    def watched(images: Tensor) -> Tensor:
        seen.append(images)
        return per_pixel(images)

    found = dense_probabilities(watched, image, DenseSettings((12, 16), 6), CPU)
    assert len(seen) == 1 and torch.equal(seen[0][0, :, :6, :9], _normalised(image))
    assert (seen[0][0, :, 6:] == 0).all() and (seen[0][0, :, :, 9:] == 0).all()
    torch.testing.assert_close(found, per_pixel(_normalised(image)[None])[0].softmax(0))


def test_a_picture_is_brought_to_the_short_side_and_kept_in_shape() -> None:
    assert scaled_size((360, 480), 240) == (240, 320)
    assert scaled_size((480, 360), 240) == (320, 240)
    assert scaled_size((100, 799), 50) == (50, 400)
    assert scaled_size((1, 100_000), 64) == (1, 512), "a thread is not enlarged without end"


def test_an_enlarged_answer_is_found_again_in_the_picture() -> None:
    """Left half black, right half white: the border stays where it is."""
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, :, 30:] = 255

    def brightness(images: Tensor) -> Tensor:
        return functional.avg_pool2d(torch.cat([-images[:, :1], images[:, :1]], 1) * 9, 4)

    for mode in ("slide", "whole"):
        found = dense_classes(brightness, image, replace(SLIDE, mode=mode), CPU)
        wrong = (found != (image[0] > 0)).any(0).nonzero().flatten().tolist()
        assert all(abs(column - 29.5) <= 2.5 for column in wrong)


@pytest.mark.parametrize("size", [(9, 14), (4, 5), (23, 6), (1, 1)], ids=str)
def test_enlarging_row_by_row_is_torchs_bilinear(size: tuple[int, int]) -> None:
    logits = torch.randn(CLASSES, 9, 14, generator=torch.Generator().manual_seed(2))
    expected = functional.interpolate(logits[None], size, mode="bilinear")[0]
    torch.testing.assert_close(enlarged(logits, range(size[0]), size), expected)
    for row in range(size[0]):
        one = enlarged(logits, range(row, row + 1), size)[:, 0]
        torch.testing.assert_close(one, expected[:, row])


def test_the_height_of_a_band_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image, settings = _picture(31, 40), replace(SLIDE, flip=True)
    whole = dense_probabilities(coarse, image, settings, CPU)
    monkeypatch.setattr(dense_inference, "_BAND", 7 * 40 * CLASSES)
    banded = dense_probabilities(coarse, image, settings, CPU)
    torch.testing.assert_close(banded, whole)
    assert torch.equal(dense_classes(coarse, image, settings, CPU), banded.argmax(0).byte())


def test_half_precision_logits_are_averaged_in_full() -> None:
    image = _picture(24, 31)
    full = dense_probabilities(coarse, image, SLIDE, CPU)
    half = dense_probabilities(lambda images: coarse(images).bfloat16(), image, SLIDE, CPU)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": (0, 1)}, "at least 1"),
        ({"short_side": 0}, "at least 1"),
        ({"mode": "tiles"}, "whole or by slide"),
        ({"stride_share": 0.0}, "stride"),
        ({"stride_share": 1.5}, "stride"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "scales"),
        ({"scales": (1.0, float("nan"))}, "scales"),
        ({"scales": (float("inf"),)}, "scales"),
        ({"scales": (1e9,)}, "0.05 to 20"),
        ({"short_side": 1}, "leaves less than 2 pixels"),
        ({"scales": (1.0, 0.08)}, "leaves less than 2 pixels"),
        ({"mode": "whole", "scales": (0.5, 1.0)}, "mode slide"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(SLIDE, **change)
