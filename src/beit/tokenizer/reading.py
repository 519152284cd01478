"""How pre-training asks a frozen tokenizer for codes: exactly, or more cheaply.

Legend: B images, (h, w) grid of codes, M listed places, R places of any pictures, K codes, D width
of the last group.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.tokenizer.dvae import DiscreteVAE, scaled_pixels
from beit.tokenizer.half_precision import RowHead, cheap_encoder
from beit.tokenizer.precision import exact

Precision = Literal["float32", "bfloat16", "float16"]
REDUCED: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TokenReader:
    """A frozen tokenizer with a way of computing.

    With "bfloat16" or "float16" its convolutions run in half precision, channels last, on weights
    that were converted once; logits and the choice of the code stay float32, or close logits would
    become equal ones. On a CUDA device the output layer multiplies half-precision numbers too, and
    sums them in float32. Some codes change: `agreement` tells how many.

    Departure: the reference asks its tokenizer outside of autocast; on a GPU DALL-E's own code
    computes every convolution but the output layer in float16, whose weights stay float32. Here
    those are rounded there, too.

    Args:
        tokenizer: On the device where it will be asked.
        precision: "float32" is exact, on CUDA without TF32.
        compiled: Have torch compile what runs in half precision; "float32" is never compiled.
            Compiled code rounds at other places, so that its codes can differ from uncompiled ones
            of the same precision where two logits are equal but for their last bits. A bank of
            codes and the live run that is compared with it must agree on this too.
    """

    def __init__(
        self, tokenizer: DiscreteVAE, precision: Precision = "float32", *, compiled: bool = False
    ) -> None:
        self.model = tokenizer
        self.vocabulary = tokenizer.vocabulary
        self.precision = precision
        self._cheap: nn.Module | None = None
        self._row_head: RowHead | None = None
        if precision in REDUCED:
            self._take_half_precision(REDUCED[precision], compiled)

    def _take_half_precision(self, dtype: torch.dtype, compiled: bool) -> None:
        cuda = self.model.head.weight.is_cuda
        self._cheap = cheap_encoder(
            self.model.encoder, dtype, padded_stem=cuda, sliced_pooling=cuda
        )
        if cuda:
            self._row_head = RowHead(self.model.head, dtype)
        for module in (self._cheap, self._row_head):
            if compiled and module is not None:
                module.compile()

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
        hidden = self._hidden(images)  # (B, D, h, w)
        if self._row_head is not None:
            return self._chosen_by_rows(hidden, index, self._row_head)
        if index is not None:
            hidden = _listed_rows(hidden, index).mT[..., None]  # (B, D, M, 1)
        with exact(hidden.device):
            codes = self.model.logits_of(hidden.float()).argmax(1)
        return codes if index is None else codes[..., 0]

    def _hidden(self, images: Tensor) -> Tensor:
        if self._cheap is None:
            with exact(images.device):
                return self.model.hidden(images)
        # Half precision knows no TF32, and compiling dislikes settings that change meanwhile.
        with torch.autocast(images.device.type, enabled=False):
            pixels = scaled_pixels(images, self.model.config).to(REDUCED[self.precision])
            hidden: Tensor = self._cheap(pixels.contiguous(memory_format=torch.channels_last))
        return hidden

    def _chosen_by_rows(self, hidden: Tensor, index: Tensor | None, head: RowHead) -> Tensor:
        rows = _rows(hidden) if index is None else _listed_rows(hidden, index)
        with torch.autocast(hidden.device.type, enabled=False):
            products = head.products(rows.flatten(0, 1))  # (R, channels of the head)
            if self.model.config.head == "linear":
                codes: Tensor = head(products)
            else:
                with exact(hidden.device):
                    features = (products + head.bias)[:, :, None, None]
                    codes = self.model.logits_of_projected(features).argmax(1)
        shape = (len(hidden), *hidden.shape[2:]) if index is None else index.shape
        return codes.view(shape)


def _rows(hidden: Tensor) -> Tensor:
    """(B, D, h, w) as (B, h * w, D) rows: as channels-last pictures lie in memory."""
    return hidden.flatten(2).mT


def _listed_rows(hidden: Tensor, index: Tensor) -> Tensor:
    """Those of the (B, M) listed places: (B, M, D)."""
    return _rows(hidden).gather(1, index[:, :, None].expand(-1, -1, hidden.shape[1]))


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
