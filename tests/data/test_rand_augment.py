"""RandAugment and erasing follow timm's laws, and depend on the sample alone (law 1)."""

import random
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor

import beit
from beit.batch import ImageBatch
from beit.data.loading.loader import LoaderSettings, training_batches
from beit.data.views.augment import prepare
from beit.data.views.draws import Key, erased_box
from beit.data.views.rand_augment import _posterized, rand_augment
from beit.data.views.views import ViewSettings, make_views
from beit.errors import UserError
from oracles.picture_zoo import scene

CONFIG = "rand-m9-mstd0.5-inc1"
PICTURE = Image.fromarray(scene(40, 50))
PLAIN = ViewSettings((32, 32))
KEYS = [Key(0, epoch, index) for epoch in range(2) for index in range(20)]


def _view(settings: ViewSettings, key: Key) -> Tensor:
    view, _ = make_views(PICTURE, settings, key)
    assert view is not None and view.dtype == torch.uint8 and view.shape == (3, 32, 32)
    return view


def _global_states() -> list[Any]:
    numpy: Any = np.random.get_state()
    return [random.getstate(), numpy[1].tolist(), *numpy[2:]]


class Scenes:
    """A few pictures in memory."""

    name, fingerprint = "scenes", "0"
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 10

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(np.roll(scene(20, 20), index, axis=1))

    def identity(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return -1


def test_the_operations_are_those_of_timms_training_transform() -> None:
    theirs: Any = create_transform(
        (64, 48), is_training=True, auto_augment=CONFIG, interpolation="bicubic"
    )
    reference = next(t for t in theirs.transforms if type(t).__name__ == "RandAugment")
    ours: Any = rand_augment(CONFIG, (64, 48))
    assert ours.num_layers == reference.num_layers == 2 and len(ours.ops) == 15
    for one, other in zip(ours.ops, reference.ops, strict=True):
        own = {"aug_fn"} if one.name.startswith("Posterize") else set()
        for name, value in vars(other).items():
            assert name in own or vars(one)[name] == value, (one.name, name)


def test_a_view_is_a_function_of_its_key_and_leaves_the_global_draws_alone() -> None:
    settings = replace(PLAIN, auto_augment=CONFIG, erasing=0.5)
    before = _global_states()
    first = [_view(settings, key) for key in KEYS]
    assert _global_states() == before
    random.seed(8)
    np.random.seed(8)
    for key, view in reversed(list(zip(KEYS, first, strict=True))):
        assert torch.equal(_view(settings, key), view)
    assert len({view.numpy().tobytes() for view in first}) == len(KEYS)


def test_an_operation_that_fails_leaves_the_global_draws_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "timm.data.auto_augment.RandAugment.__call__", lambda *_: random.random() / 0
    )
    before = _global_states()
    with pytest.raises(ZeroDivisionError):
        _view(replace(PLAIN, auto_augment=CONFIG), KEYS[0])
    assert _global_states() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    source = Scenes()
    views = ViewSettings((16, 16), auto_augment=CONFIG, erasing=0.5)
    settings = LoaderSettings(6, seed=5, workers=workers)
    for one, other in zip(
        islice(training_batches(source, views, None, replace(settings, workers=0), 12), 4),
        islice(training_batches(source, views, None, settings, 12), 4),
        strict=True,
    ):
        assert one.patch_view is not None and other.patch_view is not None
        assert torch.equal(one.patch_view, other.patch_view)


def test_most_views_are_changed_and_magnitude_counts() -> None:
    apart = []
    for config in ("rand-m0-inc1-p1", "rand-m9-mstd0.5-inc1-p1", "rand-n6-m9-inc1-p1"):
        augmented = [_view(replace(PLAIN, auto_augment=config), key) for key in KEYS]
        gaps = [
            (view.float() - _view(PLAIN, key).float()).abs().mean().item()
            for key, view in zip(KEYS, augmented, strict=True)
        ]
        apart.append(float(np.mean(gaps)))
    assert apart[0] < apart[1] < apart[2]


def test_evaluation_is_never_augmented() -> None:
    still = ViewSettings((32, 32), random=False)
    assert torch.equal(
        _view(replace(still, auto_augment=CONFIG, erasing=1.0), KEYS[0]), _view(still, KEYS[0])
    )


def test_erasing_touches_its_box_alone() -> None:
    for key in KEYS:
        view, plain = _view(replace(PLAIN, erasing=1.0), key), _view(PLAIN, key)
        box = erased_box(key.generator("erasing"), (32, 32), 1.0)
        assert box is not None
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[box.top : box.bottom, box.left : box.right] = True
        assert torch.equal(view[:, ~inside], plain[:, ~inside])
        assert (view[:, inside] != plain[:, inside]).float().mean() > 0.8


def test_normalised_noise_has_timms_mean_and_deviation() -> None:
    grey = Image.new("RGB", (64, 64), (0, 0, 0))
    settings = ViewSettings((64, 64), jitter=0.0, flip=False, erasing=1.0)
    noise = []
    for index in range(60):
        view, _ = make_views(grey, settings, Key(1, 0, index))
        assert view is not None
        batch = ImageBatch(torch.tensor([index]), torch.tensor([0]), patch_view=view[None])
        box = erased_box(Key(1, 0, index).generator("erasing"), (64, 64), 1.0)
        ready = prepare(batch).patch_view
        assert box is not None and ready is not None
        noise.append(ready[0, :, box.top : box.bottom, box.left : box.right].flatten(1))
    joined = torch.cat(noise, 1)  # (3, pixels)
    assert joined.mean(1).abs().max() < 0.05  # clipping moves both a little
    assert (joined.std(1) - 1).abs().max() < 0.05


def _timms_boxes(size: tuple[int, int], count: int) -> NDArray[np.float64]:
    random.seed(0)
    erasing: Any = RandomErasing
    erase = erasing(probability=1.0, mode="const", device="cpu")
    found = []
    for _ in range(count):
        image = torch.ones(1, *size)
        erase(image)
        rows, columns = (image[0] == 0).nonzero(as_tuple=True)
        found.append([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1])
    return np.array(found, np.float64)


def test_erased_regions_follow_timms_law() -> None:
    size, count = (48, 64), 2000
    drawn = [erased_box(Key(0, 0, i).generator("erasing"), size, 1.0) for i in range(count)]
    ours = np.array([(b.top, b.bottom, b.left, b.right) for b in drawn if b], np.float64)
    theirs = _timms_boxes(size, count)
    assert len(ours) == count
    assert ours.min() == 0 and ours[:, 1].max() == 48 and ours[:, 3].max() == 64
    quantiles = np.linspace(0.05, 0.95, 10)
    for measure in (_area, _log_ratio, _middle):
        apart = np.subtract(*(np.quantile(measure(boxes), quantiles) for boxes in (ours, theirs)))
        assert np.abs(apart).max() < 0.06 * np.ptp(measure(theirs)), measure
    shares = _area(ours) / (48 * 64)
    assert 0.015 < shares.min() < 0.04 and 0.31 < shares.max() < 0.35
    often = [erased_box(Key(0, 0, i).generator("erasing"), size, 0.25) for i in range(count)]
    assert abs(np.mean([box is not None for box in often]) - 0.25) < 0.03


def test_no_erased_region_spans_the_picture_from_side_to_side() -> None:
    """In timm it is drawn again; where a side is of a few pixels that would often happen."""
    for index in range(1000):
        box = erased_box(Key(0, 0, index).generator("erasing"), (5, 6), 1.0)
        assert box is None or (box.bottom - box.top < 5 and box.right - box.left < 6)


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.multiply(boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2])


def _log_ratio(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    return np.asarray(np.log(height / width))


def _middle(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.add(boxes[:, 0], boxes[:, 1])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 2)])
def test_the_smallest_views_can_be_erased_and_augmented(size: tuple[int, int]) -> None:
    settings = ViewSettings(size, auto_augment=CONFIG, erasing=1.0)
    for key in KEYS:
        view, _ = make_views(PICTURE, settings, key)
        assert view is not None and view.shape == (3, *size)


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"auto_augment": "rand-m9-mst0.5-inc1"}, "'rand-m9-mst0.5-inc1'"),
        ({"auto_augment": "rand-m9-tfoo"}, "'rand-m9-tfoo'"),
        ({"auto_augment": "original"}, "'original'"),
        ({"auto_augment": ""}, "''"),
        ({"erasing": 1.5}, "1.5"),
        ({"erasing": float("nan")}, "nan"),
        ({"erasing": 0.25, "token_view": (8, 8)}, "tokenizer"),
        ({"auto_augment": CONFIG, "token_view": (8, 8)}, "tokenizer"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        ViewSettings((16, 16), **settings)


def test_timm_is_imported_where_it_is_used() -> None:
    """At the head of a file it would cost seconds of every command."""
    for path in Path(beit.__file__).parent.rglob("*.py"):
        assert re.search(r"^(import|from) timm", path.read_text(), re.MULTILINE) is None, path


def test_no_draw_of_thousands_fails() -> None:
    """One in a thousand wants a picture of no bits, which Pillow 13 refuses."""
    settings = replace(PLAIN, auto_augment=CONFIG)
    assert all(_view(settings, Key(0, 0, index)).shape == (3, 32, 32) for index in range(4_000))


@pytest.mark.parametrize("bits", range(-1, 10))
def test_posterized_keeps_the_highest_bits(bits: int) -> None:
    kept = 256 - 2 ** (8 - min(8, max(0, bits)))
    expected = np.asarray(PICTURE) & np.uint8(min(255, kept))
    assert np.array_equal(np.asarray(_posterized(PICTURE, bits)), expected)
    if 1 <= bits <= 8:
        assert np.array_equal(np.asarray(ImageOps.posterize(PICTURE, bits)), expected)
