"""Images to patches, and the embedding of patches with masked ones replaced."""

# B images, C channels, (H, W) pixels, (h, w) patch grid, N patches, D width

from __future__ import annotations

import torch
from torch import Tensor, nn

from beit.nn.config import EncoderConfig


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images into flattened patches, row by row.

    Args:
        images: (B, C, H, W).
        patch_size: (height, width); must divide the image.

    Returns:
        (B, N, C * height * width); inside a patch channels come first, as in a convolution's
        weight, so that a stride-P convolution is a linear layer on these.

    Raises:
        ValueError: It does not.
    """
    height, width = patch_size
    if images.shape[-2] % height or images.shape[-1] % width:
        raise ValueError(
            f"pictures of {images.shape[-2]} x {images.shape[-1]} pixels cannot be cut into "
            f"patches of {height} x {width}"
        )
    batch, channels, rows, columns = images.shape
    cut = images.reshape(batch, channels, rows // height, height, columns // width, width)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Put flattened patches together again: the inverse of `patchify`.

    Args:
        patches: (B, N, C * height * width).
        patch_size: (height, width).
        image_size: (H, W).

    Returns:
        (B, C, H, W).
    """
    (height, width), (rows, columns) = patch_size, image_size
    batch = len(patches)
    cut = patches.reshape(batch, rows // height, columns // width, -1, height, width)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows, columns)


class Embeddings(nn.Module):
    """Patch embeddings with masked ones replaced, the special token, absolute positions (eq. 1)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.image_shape = (config.channels, *config.image_size)
        self.grid = config.grid
        self.projection = nn.Linear(config.patch_values, config.width)
        # Three dimensions, so that "no decay on 1-D parameters" does not catch the mask embedding,
        # which the reference decays.
        self.special_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.mask_embedding = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions = (
            nn.Parameter(torch.empty(1, 1 + config.patches, config.width))
            if config.absolute_positions
            else None
        )

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed images.

        Args:
            images: (B, C, H, W).
            mask: (B, h, w) bool, True where the mask embedding replaces the patch *before*
                positions are added, so that a masked place still knows where it is.

        Returns:
            (B, 1 + N, D) with the special token first, in the parameters' type.

        Raises:
            ValueError: Images or mask are of another shape or type.
        """
        self._refuse_others(images, mask)
        patches = self.projection(patchify(images, self.patch_size))  # (B, N, D)
        patches = patches.to(self.special_token.dtype)  # the residual stream is not autocast
        if mask is not None:
            patches = torch.where(mask.flatten(1).unsqueeze(2), self.mask_embedding, patches)
        # Not len(): torch.export would take the number of images for a constant.
        special = self.special_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat((special, patches), dim=1)
        return tokens if self.positions is None else tokens + self.positions

    def _refuse_others(self, images: Tensor, mask: Tensor | None) -> None:
        """Only shapes are looked at, so that no device is asked."""
        if tuple(images.shape[1:]) != self.image_shape or not images.is_floating_point():
            wanted = ", ".join(str(size) for size in self.image_shape)
            raise ValueError(
                f"this encoder takes normalised floats of shape (B, {wanted}), not "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        if mask is not None and (
            tuple(mask.shape[1:]) != self.grid or mask.dtype is not torch.bool
        ):
            raise ValueError(
                f"a mask is torch.bool of shape (B, {self.grid[0]}, {self.grid[1]}), True where a "
                f"patch is masked, not {mask.dtype} of shape {tuple(mask.shape)}"
            )
