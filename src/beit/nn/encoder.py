"""The one encoder: a vision Transformer that every task shares (section 2.3 of the paper)."""

# B images, C channels, (h, w) patch grid, N patches, D width, H heads, L depth, R places read

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit.errors import UserError
from beit.nn.config import EncoderConfig
from beit.nn.initialisation import initialise_encoder_
from beit.nn.patches import Embeddings
from beit.nn.position import gather_bias, relative_position_index, relative_table_rows
from beit.nn.transformer import Block, branch_scales, drop_path_rates

__all__ = ["Encoder", "EncoderConfig", "EncoderOutput"]


class EncoderOutput(NamedTuple):
    """What an encoder returns; nothing here is normalised, the last LayerNorm is the heads'."""

    tokens: Tensor  # (B, 1 + N, D), the special token first; (B, R, D) where only places were read
    layers: tuple[Tensor, ...]  # (B, 1 + N, D) after each named block, in the order asked


class Encoder(nn.Module):
    """A vision Transformer over patches, some of which may be masked.

    Departure: the final LayerNorm lives in the heads and not here, because a classifier normalises
    the mean of the tokens and the others each token: so one encoder serves them all.
    """

    relative_index: Tensor
    drop_rates: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        shared = config.relative_positions == "shared"
        table = torch.zeros(relative_table_rows(config.grid), config.heads) if shared else None
        self.shared_bias_table = None if table is None else nn.Parameter(table)
        if config.relative_positions != "none":
            index = relative_position_index(config.grid)
            self.register_buffer("relative_index", index, persistent=False)
        rates = drop_path_rates(config.drop_path, config.depth)
        self.register_buffer("drop_rates", rates, persistent=False)
        initialise_encoder_(self.embeddings, self._blocks(), config.layer_scale)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        *,
        layers: Sequence[int] = (),
        path_draws: Tensor | None = None,
        read: Tensor | None = None,
        until: int | None = None,
    ) -> EncoderOutput:
        """Encode images.

        Args:
            images: (B, C, H, W) normalised floats of the configured size.
            mask: (B, h, w) bool, True = masked; None masks nothing.
            layers: Blocks whose outputs are wanted, 0-based, negative from the end.
            path_draws: (B, 2 L) uniform draws in [0, 1) that decide stochastic depth, a column a
                residual branch; None while training draws them from the default generator.
            read: (B, R) int64 places in [0, N], 0 the special token: return the tokens there only
                and spare the last block the rest. The values are the same.
            until: The last block that runs, numbered like layers; None runs them all.
        """
        wanted = [self._block_number(layer) for layer in layers]
        last = self._block_number(-1 if until is None else until)
        assert read is None or last not in wanted, "the last block is not whole"
        assert max(wanted, default=0) <= last, "a layer is wanted that does not run"
        scales = self._branch_scales(images.shape[0], path_draws)
        tokens, shared_bias = self._embed(images, mask), self._shared_bias()
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self._blocks()[: last + 1]):
            here = None if scales is None else scales[:, 2 * number : 2 * number + 2]
            place = read if number == last else None
            tokens = self._run(block, tokens, self._bias(block, shared_bias), here, place)
            if number in wanted:
                outputs[number] = tokens
        return EncoderOutput(tokens, tuple(outputs[number] for number in wanted))

    def attention_maps(self, images: Tensor, mask: Tensor | None = None, *, layer: int) -> Tensor:
        """Attention probabilities of one block, for figures; without stochastic depth.

        Args:
            images: (B, C, H, W).
            mask: (B, h, w) bool or None.
            layer: The block, 0-based, negative from the end.

        Returns:
            (B, H, 1 + N, 1 + N); rows are queries and sum to one; the special token comes first.
        """
        number = self._block_number(layer)
        tokens, shared_bias = self._embed(images, mask), self._shared_bias()
        blocks = self._blocks()
        for block in blocks[:number]:
            tokens = block(tokens, self._bias(block, shared_bias))
        return blocks[number].attention_maps(tokens, self._bias(blocks[number], shared_bias))

    def undecayed_parameters(self) -> frozenset[str]:
        """Names exempt from weight decay besides 1-D parameters and biases.

        As in the reference the mask embedding and the bias tables *are* decayed.
        """
        exempt = {"embeddings.special_token", "embeddings.positions"}
        return frozenset(name for name, _ in self.named_parameters() if name in exempt)

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter for layer-wise rate decay, from the module tree.

        Embeddings are 0, block i is i + 1; a bias table shared by all blocks counts as coming
        after them, L + 1, as in the reference.
        """
        depths = {name: self.config.depth + 1 for name, _ in self.named_parameters()}
        depths |= {f"embeddings.{name}": 0 for name, _ in self.embeddings.named_parameters()}
        for number, block in enumerate(self._blocks()):
            names = (name for name, _ in block.named_parameters(prefix=f"blocks.{number}"))
            depths |= dict.fromkeys(names, number + 1)
        return depths

    def _blocks(self) -> list[Block]:
        """The blocks, or what somebody has put into their places: an adapter, a compiled one."""
        if len(self.blocks) != self.config.depth:
            raise ValueError(
                f"this encoder has {len(self.blocks)} blocks where its configuration says "
                f"{self.config.depth}: build one of another depth instead"
            )
        return [cast(Block, block) for block in self.blocks]

    def _block_number(self, layer: int) -> int:
        depth = self.config.depth
        if not -depth <= layer < depth:
            raise UserError(f"layer {layer} does not exist: this encoder has 0 to {depth - 1}")
        return layer % depth

    def _embed(self, images: Tensor, mask: Tensor | None) -> Tensor:
        return self.embeddings(images, mask)  # type: ignore[no-any-return]

    def _shared_bias(self) -> Tensor | None:
        """Gathered once a forward pass and handed to every block."""
        if self.shared_bias_table is None:
            return None
        return gather_bias(self.shared_bias_table, self.relative_index)

    def _bias(self, block: Block, shared_bias: Tensor | None) -> Tensor | None:
        if block.bias_table is None:
            return shared_bias
        return gather_bias(block.bias_table, self.relative_index)

    def _branch_scales(self, images: int, path_draws: Tensor | None) -> Tensor | None:
        if not self.training or self.config.drop_path == 0:
            return None
        if path_draws is None:
            path_draws = torch.rand(images, 2 * self.config.depth, device=self.drop_rates.device)
        return branch_scales(path_draws, self.drop_rates)

    def _run(
        self,
        block: Block,
        tokens: Tensor,
        bias: Tensor | None,
        scales: Tensor | None,
        read: Tensor | None,
    ) -> Tensor:
        if not (self.config.checkpointing and torch.is_grad_enabled()):
            return block(tokens, bias, scales, read)  # type: ignore[no-any-return]
        # Without dropout there is no chance inside a block, and no random state to put back.
        return checkpoint(  # type: ignore[no-any-return]
            block,
            tokens,
            bias,
            scales,
            read,
            use_reentrant=False,
            preserve_rng_state=self.config.dropout > 0,
        )
