"""How pre-training asks a frozen tokenizer for codes: exactly, or more cheaply.

Legend: B images, (h, w) grid of codes, M listed places, K codes, D width of the last group.
"""

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.tokenizer.dvae import DiscreteVAE, scaled_pixels

Precision = Literal["float32", "bfloat16", "float16"]
REDUCED: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TokenReader:
    """A frozen tokenizer with a way of computing.

    With "bfloat16" or "float16" its convolutions run in half precision, channels last, on weights
    that were converted once; the output layer and the choice of the code stay float32, or close
    logits would become equal ones. Some codes change: `agreement` tells how many.

    Departure: the reference runs its tokenizer in float16 by autocast on a GPU, output layer too.
    """

    def __init__(self, tokenizer: DiscreteVAE, precision: Precision = "float32") -> None:
        self.model = tokenizer
        self.vocabulary = tokenizer.vocabulary
        self.precision = precision
        self._cheap: nn.Module | None = None
        if precision in REDUCED:
            cheap = copy.deepcopy(tokenizer.encoder).to(REDUCED[precision])
            self._cheap = cheap.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """The most likely code at every place: (B, 3, H, W) in [0, 1] to (B, h, w) int64.

        The codes of a picture do not depend on what else is in its batch, nor on how many. On a CPU
        one picture alone goes through other kernels than several do, and its logits differ in their
        last bits; so it never goes alone.
        """
        return self._of_some(images, None)[: len(images)]

    @torch.no_grad()
    def codes_at(self, images: Tensor, index: Tensor) -> Tensor:
        """The same at (B, M) listed places alone: (B, M) int64.

        The output layer, a 1x1 convolution to K channels, is computed for those places only.
        """
        return self._of_some(images, index)[: len(images)]

    def _of_some(self, images: Tensor, index: Tensor | None) -> Tensor:
        if len(images) == 1:
            images = images.expand(2, -1, -1, -1)
            index = None if index is None else index.expand(2, -1)
        if self._cheap is None and index is None:
            return self.model.codes(images)
        with torch.autocast(images.device.type, enabled=False):
            hidden = self._hidden(images)  # (B, D, h, w)
            if index is not None:
                rows = hidden.flatten(2).mT  # (B, h * w, D), as it lies in memory
                hidden = rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2])).mT[
                    ..., None
                ]
            codes = self.model.logits_of(hidden.float()).argmax(1)
        return codes if index is None else codes[..., 0]

    def _hidden(self, images: Tensor) -> Tensor:
        if self._cheap is None:
            return self.model.hidden(images)
        pixels = scaled_pixels(images, self.model.config).to(REDUCED[self.precision])
        hidden: Tensor = self._cheap(pixels.contiguous(memory_format=torch.channels_last))
        return hidden


class Agreement(NamedTuple):
    """How many of some codes are the same twice."""

    equal: int
    codes: int

    @property
    def share(self) -> float:
        """Equal ones of all."""
        return self.equal / max(1, self.codes)

    def __str__(self) -> str:
        return f"{self.equal:,} of {self.codes:,} codes are equal ({self.share:.2%})"


def agreement(one: Tensor, other: Tensor) -> Agreement:
    """Compare two tensors of codes."""
    return Agreement(int((one.cpu() == other.cpu()).sum()), one.numel())
