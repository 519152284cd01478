"""Mixing is timm's on pairs, one draw a step, the same however the step is cut."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import mixup as timm_mixup
from torch import Tensor

from beit.engine.protocol import StepContext
from beit.errors import UserError
from beit.tasks.mixing import Mix, MixSettings, draw_mix, mixed, smoothed
from cuda_sync import never_asked

_TIMM: Any = timm_mixup
CLASSES, SIZE = 5, (12, 16)
BOTH = MixSettings(mixup=0.8, cutmix=1.0, label_smoothing=0.1)


def _context(step: int, rows: range = range(8), rank: int = 0, seed: int = 3) -> StepContext:
    return StepContext(seed, step, 100, rows, rank)


def _batch(rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(rows, 3, *SIZE, generator=generator)
    return images, torch.randint(CLASSES, (rows,), generator=generator)


def _drawn(step: int, settings: MixSettings = BOTH) -> Mix:
    return draw_mix(_context(step).generator("mixing"), SIZE, settings)


@pytest.mark.parametrize("step", range(6))
def test_pairs_are_mixed_as_timm_mixes_them(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = _batch()
    mix = _drawn(step)
    ours = mixed(images, labels, CLASSES, _context(step), BOTH)
    theirs: Any = _TIMM.Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (mix.share, mix.box is not None))
    monkeypatch.setattr(timm_mixup, "rand_bbox", lambda *_, **__: mix.box)
    for first in range(0, len(labels), 2):
        pair = slice(first, first + 2)
        expected_images, expected_targets = theirs(images[pair].clone(), labels[pair])
        assert torch.allclose(ours[0][pair], expected_images, atol=1e-6, rtol=0)
        assert torch.allclose(ours[1][pair], expected_targets, atol=1e-6, rtol=0)


def test_the_steps_above_hold_both_kinds() -> None:
    assert len({_drawn(step).box is None for step in range(6)}) == 2


def test_boxes_are_drawn_as_timm_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same centre gives the same box and the same share."""
    settings = MixSettings(cutmix=1.0)
    for step in range(200):
        generator = _context(step).generator("mixing")
        generator.random(2)
        share = float(generator.beta(1.0, 1.0))
        centre = [int(generator.integers(side)) for side in SIZE]
        monkeypatch.setattr(np.random, "randint", lambda *_, size, centre=centre: centre.pop(0))
        box, corrected = _TIMM.cutmix_bbox_and_lam((3, *SIZE), share)
        ours = _drawn(step, settings)
        assert ours.box == box and ours.share == pytest.approx(corrected)


@pytest.mark.parametrize("cut", [(0, 8), (0, 4, 8), (0, 2, 4, 6, 8), (0, 6, 8)])
def test_the_cut_into_parts_changes_nothing(cut: tuple[int, ...]) -> None:
    images, labels = _batch()
    for step in range(6):
        whole = mixed(images, labels, CLASSES, _context(step), BOTH)
        parts = [
            mixed(
                images[start:stop],
                labels[start:stop],
                CLASSES,
                _context(step, range(start, stop), start),
                BOTH,
            )
            for start, stop in pairwise(cut)
        ]
        for place in range(2):
            assert torch.equal(whole[place], torch.cat([part[place] for part in parts]))


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    shares = [_drawn(step).share for step in range(50)]
    assert len(set(shares)) > 40 and shares == [_drawn(step).share for step in range(50)]
    assert draw_mix(_context(0, seed=4).generator("mixing"), SIZE, BOTH) != _drawn(0)


def test_pictures_keep_the_share_that_is_drawn() -> None:
    """Over many steps half of each picture, as Beta(a, a) says; its spread is 1 / (4 (2 a + 1))."""
    shares = np.array([_drawn(step, MixSettings(mixup=0.8)).share for step in range(4000)])
    assert abs(shares.mean() - 0.5) < 0.02 and abs(shares.var() - 1 / (4 * 2.6)) < 0.004


def test_the_box_is_what_the_picture_gives_away() -> None:
    settings = MixSettings(cutmix=1.0)
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, *SIZE)
    drawn = []
    for step in range(300):
        share = _drawn(step, settings).share
        left, targets = mixed(images, torch.tensor([0, 1]), 2, _context(step), settings)
        assert left[0].mean().item() == pytest.approx(1 - share, abs=1e-6)
        assert left[1].mean().item() == pytest.approx(share, abs=1e-6)
        assert targets[0].tolist() == pytest.approx([share, 1 - share], abs=1e-6)
        drawn.append(share)
    # Uniform shares would be 0.5 on average; what is cut off at the edges is kept.
    assert 0.5 < np.mean(drawn) < 0.75 and min(drawn) < 0.2


def test_kinds_and_steps_are_chosen_as_often_as_asked() -> None:
    steps = range(1000)
    cut = [_drawn(step, MixSettings(1.0, 1.0, switch=0.3)).box is not None for step in steps]
    assert abs(np.mean(cut) - 0.3) < 0.05
    rare = [_drawn(step, MixSettings(1.0, probability=0.2)).share < 1 for step in steps]
    assert abs(np.mean(rare) - 0.2) < 0.04
    assert all(_drawn(step, MixSettings(cutmix=1.0, switch=0.0)).box for step in range(20))


def test_without_mixing_the_labels_are_one_hot_and_smoothed() -> None:
    images, labels = _batch()
    same, targets = mixed(images, labels, CLASSES, _context(0), MixSettings(label_smoothing=0.1))
    assert same is images
    expected = torch.nn.functional.one_hot(labels, CLASSES) * 0.9 + 0.1 / CLASSES
    assert torch.allclose(targets, expected) and targets.dtype == torch.float32
    logits = torch.randn(8, CLASSES)
    assert torch.allclose(
        torch.nn.functional.cross_entropy(logits, targets),
        torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1),
    )
    assert torch.equal(smoothed(labels, CLASSES, 0.0).argmax(1), labels)


def test_targets_sum_to_one_and_the_batch_is_left_alone() -> None:
    images, labels = _batch(7)
    before = images.clone()
    for step in range(10):
        out, targets = mixed(images, labels, CLASSES, _context(step), BOTH)
        assert torch.allclose(targets.sum(1), torch.ones(7))
        assert torch.allclose(out[6], images[6])  # the odd one
    assert torch.equal(images, before)


def test_impossible_settings_are_refused() -> None:
    for settings in (
        {"mixup": -1.0},
        {"switch": 1.5},
        {"label_smoothing": 2.0},
        {"cutmix": float("nan")},
    ):
        with pytest.raises(UserError, match=next(iter(settings))):
            MixSettings(**settings)


@pytest.mark.gpu
def test_the_device_is_never_asked() -> None:
    images, labels = (tensor.cuda() for tensor in _batch())
    with never_asked():
        for step in range(6):
            mixed(images, labels, CLASSES, _context(step), BOTH)
