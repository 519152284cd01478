"""Cutting images into patches, and embedding them."""

import pytest
import torch
from torch.nn import functional

from beit.nn.config import EncoderConfig
from beit.nn.patches import Embeddings, patchify, unpatchify


@pytest.mark.parametrize("patch_size", [(4, 4), (2, 4), (8, 3), (8, 12)])
def test_patches_are_torchs_blocks(patch_size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, 8, 12)
    blocks = functional.unfold(images, patch_size, stride=patch_size)  # (B, values, N)
    patches = patchify(images, patch_size)
    assert torch.equal(patches, blocks.transpose(1, 2))
    assert torch.equal(unpatchify(patches, patch_size, (8, 12)), images)


def test_patches_are_numbered_row_by_row() -> None:
    images = torch.arange(4.0).reshape(1, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(3, 3)
    assert patchify(images, (2, 3)).mean(2).tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_projection_is_the_strided_convolution() -> None:
    embeddings = _embeddings(absolute=False)
    images = torch.randn(2, 3, 8, 12)
    kernel = embeddings.projection.weight.reshape(5, 3, 4, 2)
    convolved = functional.conv2d(images, kernel, embeddings.projection.bias, stride=(4, 2))
    torch.testing.assert_close(embeddings(images)[:, 1:], convolved.flatten(2).transpose(1, 2))


def test_mask_replaces_the_patch_but_not_its_position() -> None:
    embeddings = _embeddings(absolute=True)
    assert embeddings.positions is not None
    mask = torch.zeros(2, 2, 6, dtype=torch.bool)
    mask[1, 1, 4] = True
    images = torch.randn(2, 3, 8, 12)
    plain, masked = embeddings(images), embeddings(images, mask)
    place = 1 + 1 * 6 + 4
    expected = embeddings.mask_embedding[0, 0] + embeddings.positions[0, place]
    torch.testing.assert_close(masked[1, place], expected)
    plain[1, place] = expected
    torch.testing.assert_close(masked, plain)


def test_special_token_comes_first_with_its_own_position() -> None:
    embeddings = _embeddings(absolute=True)
    assert embeddings.positions is not None
    tokens = embeddings(torch.randn(2, 3, 8, 12))
    expected = embeddings.special_token[0, 0] + embeddings.positions[0, 0]
    torch.testing.assert_close(tokens[:, 0], expected.expand(2, 5))


def _embeddings(absolute: bool) -> Embeddings:
    config = EncoderConfig((8, 12), (4, 2), 5, 1, 1, absolute_positions=absolute)
    embeddings = Embeddings(config)
    for parameter in embeddings.parameters():
        torch.nn.init.normal_(parameter)
    return embeddings


def test_patches_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match="pictures of 8 x 12 pixels .* patches of 8 x 5"):
        patchify(torch.zeros(1, 3, 8, 12), (8, 5))
