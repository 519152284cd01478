"""Laws of the encoder, for each way it can know positions."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beit.errors import UserError
from beit.nn.attention import split_projected
from beit.nn.encoder import Encoder, EncoderConfig
from beit.nn.transformer import branch_scales, drop_path_rates

PLAIN = EncoderConfig((8, 12), (4, 4), width=12, depth=3, heads=3)  # a 2 x 3 grid
RELATIVE = replace(PLAIN, absolute_positions=False, relative_positions="shared", layer_scale=0.1)
EVERY_POSITION = [
    PLAIN,
    RELATIVE,
    replace(RELATIVE, relative_positions="per-layer"),
    replace(PLAIN, relative_positions="shared"),
    replace(PLAIN, absolute_positions=False),
]
positions = pytest.mark.parametrize(
    "config", EVERY_POSITION, ids=["absolute", "shared", "per-layer", "both", "none"]
)


def shaken(config: EncoderConfig) -> Encoder:
    """An encoder with no parameter left at zero, so that nothing hides."""
    torch.manual_seed(0)
    encoder = Encoder(config)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def pictures(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 12, generator=torch.Generator().manual_seed(1))


@positions
def test_masked_pixels_cannot_change_anything(config: EncoderConfig) -> None:
    encoder, images = shaken(config), pictures()
    mask = torch.rand(2, 2, 3) > 0.5
    mask[0, 0, 0], mask[1, 1, 2] = True, True
    hidden = mask.repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    other = torch.where(hidden, torch.randn_like(images), images)
    assert not torch.equal(images, other)
    assert torch.equal(encoder(images, mask).tokens, encoder(other, mask).tokens)
    assert not torch.allclose(encoder(images).tokens, encoder(other).tokens)


@positions
def test_whether_patches_know_their_place(config: EncoderConfig) -> None:
    """Swapping two patches swaps two tokens, exactly when nothing tells positions."""
    encoder, images = shaken(config), pictures()
    swapped = images.clone()
    swapped[..., :4, :4], swapped[..., 4:, 4:8] = images[..., 4:, 4:8], images[..., :4, :4]
    order = [0, 1 + 4, 2, 3, 4, 1 + 0, 6]
    blind = torch.allclose(encoder(images).tokens, encoder(swapped).tokens[:, order], atol=1e-4)
    assert blind == (not config.absolute_positions and config.relative_positions == "none")


@positions
def test_named_layers_are_the_layers(config: EncoderConfig) -> None:
    encoder, images = shaken(config), pictures()
    output = encoder(images, layers=(2, 0, -2))
    assert len(output.layers) == 3
    assert torch.equal(output.layers[0], output.tokens)
    shorter = Encoder(replace(config, depth=1)).eval()
    shorter.load_state_dict(encoder.state_dict(), strict=False)
    torch.testing.assert_close(output.layers[1], shorter(images).tokens)
    assert torch.equal(output.layers[2], encoder(images, layers=(1,)).layers[0])


@pytest.mark.parametrize(
    "change",
    [
        *({"depth": 10**9}, {"width": 3 * 10**9}),
        *({"image_size": (8, 4 * 10**9)}, {"image_size": (16384, 16384)}),
    ],
    ids=str,
)
def test_an_encoder_that_would_never_end_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="at most"):
        replace(PLAIN, **change)


class Doubled(nn.Module):
    """What an adapter is: something round a block that has what the block has."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.bias_table = block.bias_table

    def forward(self, tokens: Tensor, *more: Any) -> Tensor:
        return 2 * self.block(tokens, *more)  # type: ignore[no-any-return]


def test_what_stands_in_a_block_s_place_runs() -> None:
    """It was left out without a word once, and the encoder was a block shorter."""
    encoder, images = shaken(RELATIVE), pictures()
    before = encoder(images, layers=[0]).layers[0]
    encoder.blocks[0] = Doubled(encoder.blocks[0])
    assert torch.equal(encoder(images, layers=[0]).layers[0], 2 * before)
    encoder.blocks.append(copy.deepcopy(encoder.blocks[1]))
    with pytest.raises(ValueError, match="blocks where its configuration says"):
        encoder(images)


def test_a_layer_that_is_not_there_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="layer 3 does not exist"):
        shaken(PLAIN)(pictures(), layers=(3,))


@positions
def test_reading_places_gives_what_reading_everything_gives(config: EncoderConfig) -> None:
    encoder, images = shaken(config), pictures()
    read = torch.tensor([[3, 1, 6, 1], [0, 2, 5, 4]])
    whole = encoder(images).tokens
    torch.testing.assert_close(
        encoder(images, read=read).tokens, torch.stack([whole[0, read[0]], whole[1, read[1]]])
    )


@positions
def test_attention_maps_are_those_of_the_forward_pass(config: EncoderConfig) -> None:
    """Rebuild a block's output from its maps: no second attention has drifted from the first."""
    encoder, images = shaken(config), pictures()
    before, after = encoder(images, layers=(0, 1)).layers
    maps = encoder.attention_maps(images, layer=1)
    assert maps.shape == (2, 3, 7, 7)
    block = encoder.blocks[1]
    # A ModuleList's members have no types, here and below.
    projected = block.attention._project(block.attention_norm(before))  # type: ignore[union-attr, operator]
    _, _, value = split_projected(projected)
    attended = block.attention.output((maps @ value).transpose(1, 2).flatten(2))  # type: ignore[union-attr, operator]
    factors = (block.attention_scale, block.mlp_scale)
    first, second = (1.0 if factor is None else factor for factor in factors)
    middle = before + first * attended
    rebuilt = middle + second * block.mlp(block.mlp_norm(middle))  # type: ignore[operator]
    torch.testing.assert_close(rebuilt, after)


def test_attention_maps_take_masks_and_count_from_the_end() -> None:
    encoder, images = shaken(RELATIVE), pictures()
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[:, 0] = True
    last = encoder.attention_maps(images, mask, layer=-1)
    assert torch.equal(last, encoder.attention_maps(images, mask, layer=2))
    assert not torch.allclose(last, encoder.attention_maps(images, layer=2))


@positions
def test_checkpointing_changes_neither_outputs_nor_gradients(config: EncoderConfig) -> None:
    outputs, gradients = [], []
    for checkpointing in (False, True):
        encoder = shaken(replace(config, checkpointing=checkpointing, drop_path=0.5, dropout=0.5))
        torch.manual_seed(2)
        output = encoder.train()(pictures(), path_draws=torch.rand(2, 6)).tokens
        output.square().sum().backward()
        outputs.append(output)
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients)


def test_same_path_draws_give_the_same_output_whatever_the_split() -> None:
    encoder = shaken(replace(RELATIVE, drop_path=0.6)).train()
    images, draws = pictures(6), torch.rand(6, 6)
    whole = encoder(images, path_draws=draws).tokens
    split = [encoder(images[i : i + 2], path_draws=draws[i : i + 2]).tokens for i in (0, 2, 4)]
    torch.testing.assert_close(whole, torch.cat(split))
    assert not torch.allclose(whole, encoder(images, path_draws=draws.flip(0)).tokens)


def test_path_draws_decide_branches_one_by_one() -> None:
    """A draw of 0 in one column drops that sample's one branch, and no other."""
    encoder = shaken(replace(PLAIN, drop_path=0.5)).train()
    images = pictures(1)
    kept = encoder(images, path_draws=torch.full((1, 6), 0.99)).tokens
    outputs = [kept]
    for column in range(2, 6):
        draws = torch.full((1, 6), 0.99)
        draws[0, column] = 0.0
        outputs.append(encoder(images, path_draws=draws).tokens)
    for first in range(5):
        for second in range(first):
            assert not torch.allclose(outputs[first], outputs[second])
    never_dropped = torch.full((1, 6), 0.99)
    never_dropped[0, :2] = 0.0  # the first block's rate is 0
    assert torch.equal(encoder(images, path_draws=never_dropped).tokens, kept)


def test_stochastic_depth_grows_linearly_and_keeps_the_mean() -> None:
    rates = drop_path_rates(0.2, 5)
    torch.testing.assert_close(rates[::2], torch.tensor([0.0, 0.05, 0.1, 0.15, 0.2]))
    assert torch.equal(rates[::2], rates[1::2])
    assert drop_path_rates(0.2, 1).tolist() == [0.0, 0.0]
    scales = branch_scales(torch.rand(20_000, 10), rates)
    torch.testing.assert_close(scales.mean(0), torch.ones(10), atol=0.02, rtol=0)
    torch.testing.assert_close((scales == 0).float().mean(0), rates, atol=0.02, rtol=0)


def test_stochastic_depth_sleeps_in_evaluation() -> None:
    encoder, images = shaken(replace(PLAIN, drop_path=0.9)), pictures()
    certain = encoder(images, path_draws=torch.zeros(2, 6)).tokens
    assert torch.equal(certain, encoder(images).tokens)
    encoder.train()
    assert not torch.allclose(encoder(images).tokens, certain)


def test_dropout_comes_only_after_the_second_mlp_layer() -> None:
    encoder = shaken(replace(PLAIN, dropout=0.5))
    places = [name for name, module in encoder.named_modules() if isinstance(module, nn.Dropout)]
    assert places == [f"blocks.{number}.mlp.dropout" for number in range(3)]
    assert not torch.allclose(encoder.train()(pictures()).tokens, encoder.eval()(pictures()).tokens)


@positions
def test_layer_ids_come_from_the_module_tree(config: EncoderConfig) -> None:
    encoder = Encoder(config)
    ids = encoder.layer_ids()
    assert set(ids) == {name for name, _ in encoder.named_parameters()}
    assert ids["embeddings.mask_embedding"] == 0
    for number in range(3):
        assert ids[f"blocks.{number}.mlp.contract.weight"] == number + 1
    if config.relative_positions == "shared":
        assert ids["shared_bias_table"] == 4
    if config.relative_positions == "per-layer":
        assert ids["blocks.1.bias_table"] == 2


@positions
def test_mask_embedding_and_bias_tables_are_decayed(config: EncoderConfig) -> None:
    encoder = Encoder(config)
    undecayed = encoder.undecayed_parameters()
    expected = {"embeddings.special_token"}
    expected |= {"embeddings.positions"} if config.absolute_positions else set()
    assert undecayed == expected
    decayed_too = [n for n, p in encoder.named_parameters() if "mask_emb" in n or "table" in n]
    assert all(encoder.get_parameter(name).ndim > 1 for name in decayed_too)


@positions
def test_every_parameter_learns(config: EncoderConfig) -> None:
    encoder = shaken(config).train()
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[:, 0] = True
    encoder(pictures(), mask).tokens.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@positions
def test_bfloat16_autocast_stays_close(config: EncoderConfig) -> None:
    encoder, images = shaken(config), pictures()
    exact = encoder(images).tokens
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(images).tokens
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.03


def test_other_shapes_are_told_what_is_wanted() -> None:
    encoder, images = shaken(PLAIN), pictures()
    for wrong in (images[..., :8], images[:, :2], images[0], images.byte()):
        with pytest.raises(ValueError, match=r"takes normalised floats of shape \(B, 3, 8, 12\)"):
            encoder(wrong)
    mask = torch.zeros(2, 2, 3).bool()
    for wrong in (mask.int(), mask.transpose(1, 2), mask.flatten(1)):
        with pytest.raises(ValueError, match=r"torch\.bool of shape \(B, 2, 3\)"):
            encoder(images, wrong)
