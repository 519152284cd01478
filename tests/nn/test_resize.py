"""Weights in another encoder: identity, oracle, what is kept near zero, what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from beit.errors import UserError
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.nn.position import relative_table_rows
from beit.nn.resize import (
    adapted,
    geometric_places,
    resize_positions,
    resize_relative_table,
)
from oracles.oracle_resize import slow_places, slow_resized_table

GRID_CHANGES = [
    ((4, 4), (8, 8)),
    ((7, 7), (12, 12)),
    ((3, 5), (6, 5)),
    ((2, 4), (5, 9)),  # three offsets along an axis: a parabola
    ((1, 3), (3, 4)),  # one offset along an axis
    ((6, 6), (4, 3)),
    ((6, 3), (4, 5)),  # smaller one way, larger the other
]
CONFIG = EncoderConfig(image_size=(16, 24), patch_size=(4, 4), width=16, depth=3, heads=2)
RELATIVE = replace(
    CONFIG, absolute_positions=False, relative_positions="shared", layer_scale=0.1, dropout=0.1
)


def _table(grid: tuple[int, int], heads: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(relative_table_rows(grid), heads, generator=generator)


def _offsets(grid: tuple[int, int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    down, right = (np.arange(1 - side, side) for side in grid)
    return down[:, None], right[None, :]


def _encoder(config: EncoderConfig, spread: float = 0.5) -> Encoder:
    """An encoder whose parameters are all far from their initial values."""
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    for parameter in encoder.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    return encoder


@pytest.mark.parametrize(("old", "new"), GRID_CHANGES)
def test_table_equals_the_slow_oracle(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = _table(old)
    slow = slow_resized_table(table.double().numpy(), old, new)
    resized = resize_relative_table(table, old, new)
    assert resized.dtype == torch.float32
    np.testing.assert_allclose(resized.numpy(), slow, atol=2e-5)


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (8, 8)), ((5, 7), (6, 13)), ((14, 14), (24, 24))]
)
def test_table_equals_the_spline_the_reference_used(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    """FITPACK's regrid on the product grid, which interp2d(kind="cubic") was."""
    from scipy.interpolate import RectBivariateSpline

    table = _table(old)
    down, right = (
        geometric_places(before - 1, after - 1) for before, after in zip(old, new, strict=True)
    )
    resized = resize_relative_table(table, old, new)[:-3]
    for head in range(table.shape[1]):
        entries = table[:-3, head].double().numpy().reshape(len(down), len(right))
        spline = RectBivariateSpline(down, right, entries, kx=3, ky=3, s=0)
        wanted = [np.arange(1 - side, side) for side in new]
        np.testing.assert_allclose(
            resized[:, head].numpy(), spline(*wanted).ravel(), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(("old", "new"), [(4, 8), (2, 2), (13, 23), (7, 27)])
def test_places_grow_by_a_constant_factor_and_span_the_new_axis(old: int, new: int) -> None:
    places = geometric_places(old, new)
    steps = np.diff(places[old:])
    assert places[old] == 0 and steps[0] == 1
    np.testing.assert_allclose(places, -places[::-1])
    np.testing.assert_allclose(places[-1], new, rtol=1e-9)
    np.testing.assert_allclose(steps[1:] / steps[:-1], steps[1], rtol=1e-9)
    np.testing.assert_allclose(places, slow_places(old, new), rtol=1e-8)


@pytest.mark.parametrize(("old", "new"), [(3, 7), (6, 40), (2, 9)])
def test_places_grow_no_faster_than_the_reference_s(old: int, new: int) -> None:
    places = geometric_places(old, new)
    np.testing.assert_allclose(places[old:], [0, *np.cumsum(1.5 ** np.arange(old))])
    assert places[-1] < new
    np.testing.assert_allclose(places, slow_places(old, new), rtol=1e-8)


@pytest.mark.parametrize(("old", "new"), [(3, 6), (3, 12), (4, 12), (5, 15), (6, 24), (8, 40)])
def test_a_small_grid_much_enlarged_keeps_to_the_values_it_had(old: int, new: int) -> None:
    """A bias that falls with the distance goes on falling, and swings nowhere far beyond."""
    down, right = _offsets((old, old))
    entries = torch.from_numpy(-np.log1p(np.hypot(down, right))).flatten()
    table = torch.cat((entries, torch.zeros(3)))[:, None].float()
    low, high = float(entries.min()), float(entries.max())
    resized = resize_relative_table(table, (old, old), (new, new))[:-3]
    assert low - 0.5 * (high - low) < resized.min() and resized.max() < high + 0.05


@pytest.mark.parametrize(("old", "new"), GRID_CHANGES)
def test_constants_stay_and_special_rows_are_kept(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    table = torch.full((relative_table_rows(old), 2), 0.7)
    table[-3:] = torch.arange(6.0).view(3, 2)
    resized = resize_relative_table(table, old, new)
    assert resized.shape == (relative_table_rows(new), 2)
    torch.testing.assert_close(resized[:-3], torch.full_like(resized[:-3], 0.7))
    assert torch.equal(resized[-3:], table[-3:])
    positions = torch.full((1, 1 + old[0] * old[1], 5), 0.7)
    positions[:, 0] = 3.0
    places = resize_positions(positions, old, new)
    assert places.shape == (1, 1 + new[0] * new[1], 5)
    assert torch.equal(places[:, 0], positions[:, 0])
    torch.testing.assert_close(places[:, 1:], torch.full_like(places[:, 1:], 0.7))


def test_same_grid_gives_the_same_numbers_bitwise() -> None:
    table, positions = _table((3, 5)), torch.randn(1, 16, 4)
    assert torch.equal(resize_relative_table(table, (3, 5), (3, 5)), table)
    assert torch.equal(resize_positions(positions, (3, 5), (3, 5)), positions)
    one_way = resize_relative_table(table, (3, 5), (3, 8))[:-3].view(5, 15, 3)
    torch.testing.assert_close(one_way[:, 7], table[:-3].view(5, 9, 3)[:, 4])


def test_a_smaller_grid_keeps_the_entries_of_its_offsets_bitwise() -> None:
    table = _table((6, 7))
    cut = table[:-3].view(11, 13, 3)[2:9, 3:10]
    assert torch.equal(resize_relative_table(table, (6, 7), (4, 4))[:-3].view(7, 7, 3), cut)


def test_a_smooth_function_of_the_place_is_reproduced() -> None:
    """A table that samples a cubic at the places is that cubic at the new offsets, exactly."""
    old, new = (5, 6), (9, 8)
    places = [geometric_places(a - 1, b - 1) for a, b in zip(old, new, strict=True)]

    def smooth(down: Any, right: Any) -> Any:
        x, y = down / 8, right / 8
        return 0.3 + x - 2 * y + x * y + x**3 - 0.5 * y**2

    entries = torch.from_numpy(smooth(places[0][:, None], places[1][None, :])).flatten()
    table = torch.cat((entries, torch.zeros(3)))[:, None]
    resized = resize_relative_table(table, old, new)[:-3, 0].numpy()
    np.testing.assert_allclose(resized, smooth(*_offsets(new)).ravel(), atol=1e-6)


def test_values_of_near_offsets_hardly_change_and_far_ones_are_stretched() -> None:
    old, new = (14, 14), (24, 24)
    down, right = _offsets(old)
    peak = torch.from_numpy(np.exp(-np.hypot(down, right) / 3)).flatten()
    table = torch.cat((peak, torch.zeros(3)))[:, None].float()
    before = table[:-3].view(27, 27)
    after = resize_relative_table(table, old, new)[:-3].view(47, 47)
    torch.testing.assert_close(after[22:25, 22:25], before[12:15, 12:15])  # offsets -1, 0, 1
    near = (after[20:27, 20:27] - before[10:17, 10:17]).abs().max()  # up to 3 patches away
    spread_evenly = functional.interpolate(
        before[None, None], (47, 47), mode="bicubic", align_corners=True
    )[0, 0]
    evenly = (spread_evenly[20:27, 20:27] - before[10:17, 10:17]).abs().max()
    assert near < 0.06 and evenly > 3 * near
    torch.testing.assert_close(after[0, 0], before[0, 0])


def test_positions_equal_those_of_timm() -> None:
    from timm.layers.pos_embed import resample_abs_pos_embed

    positions = torch.randn(1, 1 + 4 * 6, 8)
    theirs = resample_abs_pos_embed(positions, [7, 9], [4, 6], num_prefix_tokens=1, antialias=False)
    torch.testing.assert_close(resize_positions(positions, (4, 6), (7, 9)), theirs)


@pytest.mark.parametrize("config", [CONFIG, RELATIVE, replace(RELATIVE, absolute_positions=True)])
def test_same_configuration_gives_the_same_encoder(config: EncoderConfig) -> None:
    encoder, images = _encoder(config), torch.randn(2, 3, 16, 24)
    state = torch.get_rng_state()
    same, notes = adapted(encoder, config)
    assert torch.equal(torch.get_rng_state(), state), "the default generator was used"
    assert notes == () and same is not encoder
    for name, value in encoder.state_dict().items():
        assert torch.equal(same.state_dict()[name], value), name
    assert torch.equal(same(images).tokens, encoder(images).tokens)
    same.embeddings.special_token.data.zero_()
    assert encoder.embeddings.special_token.abs().sum() > 0, "the two share a tensor"


def test_mode_and_regularisation() -> None:
    encoder = _encoder(RELATIVE).train()
    changed, notes = adapted(encoder, replace(RELATIVE, drop_path=0.2, dropout=0.0))
    assert changed.training and changed.config.drop_path == 0.2
    assert notes == ("drop_path 0.0 -> 0.2", "dropout 0.1 -> 0.0")


def test_a_shared_table_copied_into_the_layers_gives_the_same_tokens() -> None:
    encoder, images = _encoder(RELATIVE), torch.randn(2, 3, 16, 24)
    copied, notes = adapted(encoder, replace(RELATIVE, relative_positions="per-layer"))
    assert notes == ("shared relative table copied into each of 3 layers",)
    assert torch.equal(copied(images).tokens, encoder(images).tokens)
    tables = [block.get_parameter("bias_table") for block in copied.blocks]
    tables[0].data.zero_()
    assert all(table.abs().sum() > 0 for table in tables[1:]), "the layers share one table"


def test_notes_say_what_was_resized() -> None:
    both = replace(RELATIVE, absolute_positions=True)
    wanted = replace(both, image_size=(32, 24), relative_positions="per-layer")
    resized, notes = adapted(_encoder(both), wanted)
    assert notes == (
        "shared relative table copied into each of 3 layers",
        "positions resized from 4x6 to 8x6 (bicubic)",
        "3 relative tables resized from 4x6 to 8x6 (geometric progression, cubic)",
    )
    assert resized(torch.randn(1, 3, 32, 24)).tokens.shape == (1, 1 + 48, 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 32}, "width 16 and width 32"),
        ({"depth": 4}, "depth 3 and depth 4"),
        ({"heads": 4}, "heads 2 and heads 4"),
        ({"patch_size": (8, 8)}, "patch size 4x4 and patch size 8x8"),
        ({"mlp_ratio": 2.0}, "mlp ratio 4.0"),
        ({"absolute_positions": True}, "lacks absolute positions"),
        ({"layer_scale": None}, "has LayerScale"),
        ({"relative_positions": "none"}, "'shared' and 'none'"),
        ({"width": 32, "heads": 4}, "width"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        adapted(_encoder(RELATIVE), replace(RELATIVE, **changes))


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_features_do_not_jump_on_an_enlarged_picture(kind: str) -> None:
    """Smooth tables that matter, a smooth picture, twice the size: features stay as they were."""
    base = CONFIG if kind == "absolute" else replace(RELATIVE, layer_scale=1.0)
    small, large = (replace(base, image_size=(side, side)) for side in (32, 64))
    encoder = _encoder(small, spread=0.1)
    _smooth_positions(encoder)
    for block in encoder.blocks:
        block.get_parameter("attention.output.weight").data *= 10
    coarse = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    pictures = functional.interpolate(coarse, (32, 32), mode="bicubic")
    enlarged = functional.interpolate(pictures, (64, 64), mode="bicubic")
    before = _map(encoder, pictures)
    after = _map(adapted(encoder, large)[0], enlarged)
    assert (after - before).norm() < 0.15 * before.norm()
    pooled = functional.cosine_similarity(after.mean((2, 3)), before.mean((2, 3)))
    assert pooled.min() > 0.98
    broken = _map(_shuffled(adapted(encoder, large)[0]), enlarged)
    assert (broken - before).norm() > 2 * (after - before).norm(), "positions do not matter here"


def _shuffled(encoder: Encoder) -> Encoder:
    for name, parameter in encoder.named_parameters():
        if name in ("embeddings.positions", "shared_bias_table"):
            rows = parameter.data.flatten(0, -2)
            parameter.data = rows[torch.randperm(len(rows))].view_as(parameter)
    return encoder


@torch.no_grad()
def _map(encoder: Encoder, images: Tensor) -> Tensor:
    """The patches' tokens as an (B, D, 8, 8) image."""
    tokens = encoder(images).tokens[:, 1:].transpose(1, 2).unflatten(2, encoder.config.grid)
    return functional.adaptive_avg_pool2d(tokens, 8)


def _smooth_positions(encoder: Encoder) -> None:
    """Low frequencies only, strong enough to matter."""
    height, width = encoder.config.grid
    generator = torch.Generator().manual_seed(2)
    if (positions := encoder.embeddings.positions) is not None:
        coarse = torch.randn(1, positions.shape[2], 2, 2, generator=generator)
        smooth = functional.interpolate(coarse, (height, width), mode="bilinear")
        positions.data[:, 1:] = smooth.flatten(2).transpose(1, 2)
    if (table := encoder.shared_bias_table) is not None:
        coarse = 2 * torch.randn(1, table.shape[1], 3, 3, generator=generator)
        sides = (2 * height - 1, 2 * width - 1)
        smooth = functional.interpolate(coarse, sides, mode="bicubic", align_corners=True)
        table.data[:-3] = smooth[0].flatten(1).T
