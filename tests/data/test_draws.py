import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms.v2 import RandomResizedCrop

from beit.data.views.draws import Key, MaskPlan, centre_box, colour_draws, crop_box, draw_masks
from beit.errors import UserError
from beit.masking import MASKERS, Grid, Mask

KEYS = [Key(0, 0, index) for index in range(2000)]


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), index=st.integers(0, 10**6))
def test_a_crop_lies_in_the_picture(height: int, width: int, index: int) -> None:
    box = crop_box(Key(0, 0, index).generator("crop"), (height, width), (0.08, 1.0), (3 / 4, 4 / 3))
    assert 0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height


def test_crops_follow_torchvisions_law() -> None:
    """Shares of the area, log ratios and centres have the quantiles torchvision's have."""
    size, scale, ratio = (375, 500), (0.08, 1.0), (3 / 4, 4 / 3)
    ours = np.array(
        [crop_box(key.generator("crop"), size, scale, ratio) for key in KEYS], np.float64
    )
    torch.manual_seed(0)
    other = RandomResizedCrop(32, scale, ratio)
    picture = [torch.zeros(1, *size)]
    drawn = [other.make_params(picture) for _ in range(2000)]
    theirs = np.array(
        [(p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]) for p in drawn],
        np.float64,
    )
    for measure in (_area, _log_ratio, _centre):
        quantiles = np.linspace(0.05, 0.95, 10)
        spread = np.ptp(measure(theirs))
        apart = np.subtract(*(np.quantile(measure(boxes), quantiles) for boxes in (ours, theirs)))
        assert np.abs(apart).max() < 0.06 * spread


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.multiply(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])


def _log_ratio(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithms: NDArray[np.float64] = np.subtract(
        *np.log([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]])
    )
    return logarithms


def _centre(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.add(boxes[:, 0], boxes[:, 2])


def test_crops_reach_every_edge() -> None:
    """Off by one here, and the last row and column would never be seen."""
    boxes = [crop_box(key.generator("crop"), (4, 4), (0.5, 0.6), (0.99, 1.01)) for key in KEYS]
    assert {(box.left, box.top) for box in boxes} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {(box.right, box.bottom) for box in boxes} == {(3, 3), (3, 4), (4, 3), (4, 4)}


def test_a_picture_too_thin_for_any_crop_gives_its_middle() -> None:
    box = crop_box(Key(0, 0, 0).generator("crop"), (10, 1000), (0.5, 1.0), (3 / 4, 4 / 3))
    assert box == (493, 0, 506, 10)


def test_the_centre_crop_keeps_the_share_of_the_sides() -> None:
    assert centre_box((100, 200), 1.0, 0.5) == (75, 25, 125, 75)
    assert centre_box((200, 100), 2.0, 1.0) == (0, 75, 100, 125)
    assert centre_box((1, 1), 4 / 3, 0.1) == (0, 0, 1, 1)


def test_colour_draws_are_uniform_and_per_sample() -> None:
    draws = colour_draws(KEYS, 0.4, flip=True)
    for factor in (draws.brightness, draws.contrast, draws.saturation):
        assert 0.6 <= factor.min() and factor.max() <= 1.4
        assert abs(float(factor.mean()) - 1) < 4 * 0.231 / math.sqrt(len(KEYS))
    assert abs(float(draws.flip.float().mean()) - 0.5) < 0.05
    orders, counts = torch.unique(draws.order, dim=0, return_counts=True)
    assert len(orders) == 6 and counts.min() > len(KEYS) / 6 * 0.8
    alone = colour_draws(KEYS[7:8], 0.4, flip=True)
    assert alone.brightness[0] == draws.brightness[7]
    assert torch.equal(alone.order[0], draws.order[7]) and alone.flip[0] == draws.flip[7]


def test_no_draw_of_a_sample_tells_another() -> None:
    """The crop, the flip, the colours and the mask: each has a stream of its own."""
    size, ratio = (375, 500), (3 / 4, 4 / 3)
    boxes = np.array([crop_box(k.generator("crop"), size, (0.08, 1.0), ratio) for k in KEYS])
    draws = colour_draws(KEYS, 0.4, flip=True)
    colours = torch.stack([draws.brightness, draws.contrast, draws.saturation]).numpy()
    first = draw_masks(MaskPlan((6, 6), "random"), KEYS).grid[:, 0, 0].numpy()
    crops = [_area(boxes), _log_ratio(boxes), _centre(boxes)]  # these hang together
    drawn = np.array([*crops, draws.flip.numpy(), first, *colours], np.float64)
    correlations = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlations[len(crops) :]).max() < 4 / math.sqrt(len(KEYS))


def test_no_jitter_costs_no_round_and_leaves_the_flips() -> None:
    draws = colour_draws(KEYS[:50], 0.0, flip=True)
    assert draws.order.shape == (50, 0)
    assert torch.equal(draws.flip, colour_draws(KEYS[:50], 0.4, flip=True).flip)
    assert not colour_draws(KEYS[:50], 0.4, flip=False).flip.any()


@pytest.mark.parametrize("name", ["blockwise", "blockwise-paper", "random"])
def test_a_mask_and_its_list_agree(name: str) -> None:
    plan = MaskPlan((8, 8), name, ratio=0.4, minimum_block=4)
    masks = draw_masks(plan, KEYS[:20])
    assert masks.index.shape == masks.weight.shape == (20, plan.capacity)
    listed = torch.zeros(20, 64).scatter_add_(1, masks.index, masks.weight)
    assert torch.equal(listed.bool(), masks.grid.flatten(1)) and listed.max() == 1


def test_ablations_of_the_paper_are_plans() -> None:
    everything = draw_masks(MaskPlan((4, 6), ratio=0.5, minimum_block=2, recover="all"), KEYS[:3])
    assert everything.index.tolist() == [list(range(24))] * 3
    assert everything.weight.min() == 1 and everything.grid.any()
    nothing = draw_masks(MaskPlan((4, 6), "none"), KEYS[:3])
    assert nothing.index.tolist() == [list(range(24))] * 3 and not nothing.grid.any()


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (np.zeros((4, 6), np.bool_), "empty"),
        (np.ones((6, 4), np.bool_), r"bool of shape \(6, 4\)"),
        (np.ones((4, 6)), "float64 of shape"),
        ([[True]], "list"),
    ],
)
def test_what_is_no_mask_is_refused(
    mask: Any, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MASKERS, "mine", lambda generator, grid, **settings: mask)
    with pytest.raises(UserError, match=f"masking 'mine' is .*{complaint}"):
        draw_masks(MaskPlan((4, 6), "mine"), KEYS[:1])


def a_corner(generator: np.random.Generator, grid: Grid, **settings: Any) -> Mask:
    del generator, settings
    mask = np.zeros(grid, np.bool_)
    mask[0, 0] = True
    return mask


def test_a_plan_takes_its_masker_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKERS, "mine", a_corner)
    sent = pickle.dumps(MaskPlan((2, 2), "mine"))
    monkeypatch.delitem(MASKERS, "mine")
    assert pickle.loads(sent).draw(KEYS[0]).tolist() == [[True, False], [False, False]]


def test_impossible_plans_are_refused_before_any_work() -> None:
    plans: list[dict[str, Any]] = [
        {"name": "blocks"},
        {"ratio": 1.5},
        {"count": 65},
        {"ratio": 0.0},
    ]
    for plan in plans:
        with pytest.raises(UserError):
            MaskPlan((8, 8), **plan)
