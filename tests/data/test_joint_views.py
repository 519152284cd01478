"""Picture and mask are cut from the same place, and no class is ever invented."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from beit.data.views.draws import Key
from beit.data.views.joint_views import JointViewSettings, make_joint_view
from beit.errors import UserError
from beit.pixels import PIXEL_MEAN, PIXEL_STD
from data.pair_folders import some_mask
from oracles.picture_zoo import scene

Pixels = NDArray[np.uint8]
SETTINGS = JointViewSettings(size=(32, 40), short_side=32)
PADDING = np.rint(np.array(PIXEL_MEAN) * 255)


def _cut(
    image: Pixels, mask: Pixels, settings: JointViewSettings = SETTINGS, index: int = 0
) -> tuple[Pixels, Pixels]:
    view, target = make_joint_view(Image.fromarray(image), mask, settings, Key(3, 1, index))
    assert view.shape == (3, *settings.size) and target.shape == settings.size
    return view.permute(1, 2, 0).numpy(), target.numpy()


def _ramps(height: int, width: int) -> tuple[Pixels, Pixels, Pixels]:
    """A picture whose red tells the row and whose green the column, and two masks that do too."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([2 * rows, 2 * columns, 0 * rows], -1).astype(np.uint8)
    return picture, rows.astype(np.uint8), columns.astype(np.uint8)


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (25, 25)], ids=str)
@pytest.mark.parametrize("random", [True, False])
def test_picture_and_mask_tell_the_same_place(size: tuple[int, int], random: bool) -> None:
    """Bicubic keeps a ramp, so the picture's colours say where each pixel is from.

    (Brought to exactly half its size, the nearest of two is half a stored pixel off by nature.)
    """
    picture, rows, columns = _ramps(*size)
    settings = replace(SETTINGS, random=random, short_side=31, most_of_one_class=1.0)
    seen = set()
    for index in range(12):
        for channel, mask in enumerate((rows, columns)):
            view, target = _cut(picture, mask, settings, index)
            inside = target != 255
            told = view[..., channel].astype(float) / 2
            difference = (told - target)[inside]
            step = max(size) / inside.any(1 - channel).sum()  # at most so many stored pixels each
            assert np.abs(difference).max() <= 0.5 + 0.5 * min(step, 4.0)
            assert abs(difference.mean()) < 0.3, "shifted"
            seen.add((int(target.min()), int(inside.sum())))
    assert len(seen) > 8 if random else len(seen) <= 2  # rows and columns


def test_the_piece_is_what_cropping_the_scaled_picture_gives() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    mask = some_mask(50, 70)
    settings = replace(SETTINGS, random=False, short_side=80)  # 80 x 112, crop 24..56 x 36..76
    view, target = _cut(noise, mask, settings)
    scaled = Image.fromarray(noise).resize((112, 80), Image.Resampling.BICUBIC)
    expected = np.asarray(scaled).astype(int)[24:56, 36:76]
    assert np.abs(view - expected).max() <= 1
    nearest = Image.fromarray(mask).resize((112, 80), Image.Resampling.NEAREST)
    assert np.array_equal(target, np.asarray(nearest)[24:56, 36:76])


@pytest.mark.parametrize("size", [(7, 90), (33, 41), (200, 150), (1, 1), (3, 1)], ids=str)
def test_no_class_is_invented(size: tuple[int, int]) -> None:
    mask = (some_mask(*size) * 100).astype(np.uint8)  # between 0 and 200 there would be 100
    mask[mask == 100] = 7
    picture = np.asarray(Image.fromarray(scene()).resize(size[::-1]))
    found = set()
    for index in range(20):
        _, target = _cut(picture, mask, index=index)
        found |= set(np.unique(target).tolist())
    assert found <= {*np.unique(mask).tolist(), 255}


def test_beyond_the_picture_there_is_mean_colour_and_nothing_to_count() -> None:
    picture, mask = np.full((20, 20, 3), 250, np.uint8), some_mask(20, 20) % 3
    settings = replace(SETTINGS, size=(50, 40), scale=(0.5, 0.7))
    for index in range(5):
        view, target = _cut(picture, mask, settings, index)
        outside = target == 255
        rows, columns = (~outside).any(1).sum(), (~outside).any(0).sum()
        assert rows == columns and 15 <= rows <= 23, "a square picture of 16 to 22 pixels"
        assert not outside[:rows, :columns].any() and outside[rows:].all()
        assert outside[:, columns:].all()
        assert np.array_equal(view[outside], np.broadcast_to(PADDING, (int(outside.sum()), 3)))
        assert (view[~outside] == 250).all()
    normalised = (PADDING / 255 - PIXEL_MEAN) / PIXEL_STD
    assert np.abs(normalised).max() < 0.01


def test_a_piece_is_a_pure_function_of_its_key() -> None:
    picture, mask = scene(60, 80), some_mask(60, 80)
    one, again = _cut(picture, mask, index=4), _cut(picture, mask, index=4)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    others = [_cut(picture, mask, index=index)[0].tobytes() for index in range(20)]
    assert len(set(others)) >= 18
    view, _ = make_joint_view(Image.fromarray(picture), mask, SETTINGS, Key(3, 2, 4))
    assert not np.array_equal(view.permute(1, 2, 0).numpy(), one[0]), "another epoch"
    fixed = replace(SETTINGS, random=False)
    centres = {_cut(picture, mask, fixed, index)[0].tobytes() for index in range(5)}
    assert len(centres) == 1


def test_scales_are_spread_over_their_range() -> None:
    picture, mask = np.zeros((40, 40, 3), np.uint8), np.arange(1600).reshape(40, 40) % 250
    settings = replace(SETTINGS, size=(90, 90), short_side=40, most_of_one_class=1.0)
    sides = np.array(
        [
            (_cut(picture, mask.astype(np.uint8), settings, index)[1] != 255).any(0).sum()
            for index in range(200)
        ]
    )
    assert 20 <= sides.min() < 22 and 78 < sides.max() <= 80
    assert abs(sides.mean() - 50) < 3 and abs(sides.std() - 60 / np.sqrt(12)) < 2


def _largest_share(target: Pixels) -> float:
    counts = np.bincount(target[target != 255])
    return float(counts.max() / counts.sum())


@pytest.mark.parametrize("speckled", [False, True])
def test_crops_of_one_class_are_drawn_again(speckled: bool) -> None:
    """A tenth of the picture is another class: most crops see too little of it.

    Pixels that do not count are no other class, be they as many as half of all.
    """
    picture = np.zeros((200, 200, 3), np.uint8)
    mask = np.zeros((200, 200), np.uint8)
    mask[:, 90:110] = 1
    mask[:: 2 if speckled else 1000] = 255
    settings = JointViewSettings((32, 32), 200, scale=(1.0, 1.0))
    plain = replace(settings, most_of_one_class=1.0)
    shares = [
        [_largest_share(_cut(picture, mask, chosen, index)[1]) for index in range(120)]
        for chosen in (settings, plain)
    ]
    mixed, drawn_once = (float((np.array(share) < 0.75).mean()) for share in shares)
    # A crop passes with probability p; the eleventh is taken whatever it is.
    assert 0.15 < drawn_once < 0.35
    assert mixed == pytest.approx(1 - (1 - drawn_once) ** 11, abs=0.06)
    first = [pair for pair in zip(*shares, strict=True) if pair[1] < 0.75]
    assert first and all(one == other for one, other in first), "good crops stay as they were"


def test_where_every_crop_is_of_one_class_one_is_taken_all_the_same() -> None:
    picture = scene(60, 80)
    for value in (0, 255):
        mask = np.full((60, 80), value, np.uint8)
        _, target = _cut(picture, mask, replace(SETTINGS, scale=(2.0, 2.0)))
        assert (target == value).all()


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)], ids=str)
def test_a_thread_of_a_picture_costs_no_more_than_its_crop(size: tuple[int, int]) -> None:
    mask = np.zeros(size, np.uint8)
    mask.ravel()[::2] = 1
    view, target = _cut(np.zeros((*size, 3), np.uint8), mask)
    assert set(np.unique(target)) <= {0, 1, 255} and (view[target != 255] == 0).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": (0, 4)}, "at least 1"),
        ({"short_side": 0}, "at least 1"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"jitter": -0.1}, "jitter"),
        ({"most_of_one_class": 0.0}, "most of one class"),
        ({"most_of_one_class": 1.1}, "most of one class"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(SETTINGS, **change)  # type: ignore[arg-type]
