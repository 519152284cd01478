"""What each idea for a faster step gains: the step with it and without it, in turns.

    python benchmarks/ideas.py --sizes base --batch 8 --rounds 5

A side without an idea computes the same loss and the same gradients in float32 (asserted first), by
the more obvious road. The predictions were written down before anything was timed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.commands.planning.calibration import Call
from beit.data.views.augment import prepare
from beit.nn import attention, transformer
from beit.nn.encoder import Encoder
from beit.nn.fused_attention import is_made_for
from beit.nn.heads import MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel, MaskedPlaces
from beit.nn.position import gather_bias
from beit.nn.transformer import Block
from beit.objectives.masked import masked_token_loss
from beit.tokenizer.reading import TokenReader
from harness import interleaved, record, times_faster
from reference_model import ReferenceTokenizer
from setting import Setting, drawn_batch, fast_reading, settings_of, with_settings

PREDICTED = {  # ratio of step times, without / with
    "head on the listed places alone": "1.05",
    "last block's MLP at the listed places alone": "1.03 (1.04 with its queries)",
    "one gathering of the bias a step": "1.01",
    "attention kernel chosen by device and type": "1.1 on this CPU",
    "attention and its bias in kernels of our own": "1.2 on an H200; nowhere else",
    "attention's probabilities computed twice, not kept": "0.99; a sixth of the memory",
    "LayerScale multiplies weights, not results": "1.01; a tenth of the memory",
    "fused AdamW": "1.02",
    "tokenizer: channels last": "1.3 of the tokenizer's time in float32",
    "tokenizer: half precision, weights cast once": "1.2 to 1.35 of the step",
    "tokenizer: output layer at listed places": "1.03 of the step",
    "whole model compiled": "1.25 to 1.35 on a GPU; unknown on a CPU",
}


class HeadEverywhere(MaskedImageModel):
    """The head on all places, and the listed ones picked from its logits."""

    def forward(
        self, images: Tensor, masks: MaskedPlaces, path_draws: Tensor | None = None
    ) -> Tensor:
        """As `MaskedImageModel`."""
        logits = self.head(self.encoder(images, masks.grid, path_draws=path_draws).tokens[:, 1:])
        return _picked(logits, masks.index)


class WholeLastBlock(MaskedImageModel):
    """Every block whole; the head on the listed places."""

    def forward(
        self, images: Tensor, masks: MaskedPlaces, path_draws: Tensor | None = None
    ) -> Tensor:
        """As `MaskedImageModel`."""
        tokens = self.encoder(images, masks.grid, path_draws=path_draws).tokens[:, 1:]
        return self.head(_picked(tokens, masks.index))  # type: ignore[no-any-return]


class BiasABlock(Encoder):
    """The shared table gathered again in every block."""

    def _bias(self, block: Block, shared_bias: Tensor | None) -> Tensor | None:
        assert self.shared_bias_table is not None
        return gather_bias(self.shared_bias_table, self.relative_index)


def _apart(one: tuple[float, list[Tensor]], other: tuple[float, list[Tensor]]) -> float:
    pairs = list(zip(one[1], other[1], strict=True))
    norm = sum(float(a.square().sum()) for a, _ in pairs)
    apart: float = (sum(float((a - b).square().sum()) for a, b in pairs) / norm) ** 0.5
    assert abs(one[0] - other[0]) < 1e-4 * one[0] and apart < 2e-4, (one[0], other[0], apart)
    return apart


def _picked(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index.unsqueeze(2).expand(-1, -1, values.shape[2]))


READINGS = (  # each gains over the one before
    "tokenizer: channels last",
    "tokenizer: half precision, weights cast once",
    "tokenizer: output layer at listed places",
)

ROADS: list[tuple[str, type[MaskedImageModel], type[Encoder]]] = [
    ("head on the listed places alone", HeadEverywhere, Encoder),
    ("last block's MLP at the listed places alone", WholeLastBlock, Encoder),
    ("one gathering of the bias a step", MaskedImageModel, BiasABlock),
]


def main() -> None:
    """Time every idea and write a record of each size."""
    parser = with_settings(__doc__)
    parser.add_argument("--only", nargs="+", metavar="PART", help="ideas with this in their name")
    options = parser.parse_args()

    def wanted(name: str) -> bool:
        parts = options.only or [""]
        skipped = options.eager and "compiled" in name
        return not skipped and any(part in name for part in parts)

    for setting in settings_of(options):
        rows = _Ideas(setting).measured(wanted)
        name = f"ideas-{setting.where}"
        print(record(name, rows, options.results, precision=setting.precision))


class _Ideas:
    """One model and one batch, and the sides with and without each idea."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        self.setting = setting
        config = setting.encoder()
        self.vae = setting.tokenizer(config.grid)
        head = MaskedTokenHead(config.width, self.vae.vocabulary)
        self.model = MaskedImageModel(Encoder(config), head).to(setting.device)
        self.ready = prepare(drawn_batch(setting, config, self.vae.image_size))
        assert self.ready.token_view is not None and self.ready.masks is not None
        self.codes = TokenReader(self.vae).codes(self.ready.token_view).flatten(1)

    def like(self, kind: type[MaskedImageModel], encoder: type[Encoder] = Encoder) -> nn.Module:
        """Another road with the same weights."""
        config = self.model.encoder.config
        head = MaskedTokenHead(config.width, self.vae.vocabulary)
        other = kind(encoder(config), head).to(self.setting.device)
        other.load_state_dict(self.model.state_dict())
        return other

    def loss(self, model: nn.Module) -> Tensor:
        """The loss of a model on the batch."""
        masks = self.ready.masks
        assert masks is not None
        targets = masks.gather(self.codes)
        return masked_token_loss(model(self.ready.patch_view, masks), targets, masks.weight)[0]

    def step(self, model: nn.Module, *, fused: bool = True) -> Call:
        """A whole step, tokens given."""
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=fused)
        kind, wanted = self.setting.device.type, self.setting.precision == "bfloat16"

        def once() -> None:
            optimiser.zero_grad()
            with torch.autocast(kind, torch.bfloat16, enabled=wanted):
                loss = self.loss(model)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        return once

    def gradients(self, model: nn.Module) -> tuple[float, list[Tensor]]:
        """Loss and gradients in float32."""
        model.zero_grad()
        loss = self.loss(model)
        loss.backward()  # type: ignore[no-untyped-call]
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return float(loss.detach()), found

    def same(self, other: nn.Module) -> float:
        """Assert equal losses and gradients; return how far apart the latter are, relatively."""
        return _apart(self.gradients(self.model), self.gradients(other))

    def measured(self, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
        """The rows of the ideas that are wanted by name."""
        makers: dict[str, Callable[[str], dict[str, Any]]] = {
            **{name: partial(self.road, kinds) for name, *kinds in ROADS},
            "fused AdamW": self.fused,
            **{name: partial(self.way, where, what) for name, where, what in self.ways()},
            "whole model compiled": self.compiled,
        }
        rows = [make(name) for name, make in makers.items() if wanted(name)]
        readings = self.tokenizers() if any(map(wanted, READINGS)) else []
        return rows + readings

    def ways(self) -> list[tuple[str, str, Callable[..., Tensor]]]:
        """Those that this device has."""
        own = "attention and its bias in kernels of our own"
        here = is_made_for(torch.empty(1, 1, 3, 1, 64, device=self.setting.device).bfloat16())
        return [*WAYS, *([(own, "attend_projected", unfused_attention)] if here else [])]

    def road(self, kinds: Sequence[Any], name: str) -> dict[str, Any]:
        """Another forward pass."""
        other = self.like(*kinds)  # copied now: the rows before have trained the model
        return self.row(name, self.step(other), self.same(other))

    def way(self, where: str, function: Callable[..., Tensor], name: str) -> dict[str, Any]:
        """Another function in the model."""
        own = self.gradients(self.model)
        with replaced(where, function):
            apart = _apart(own, self.gradients(self.model))
        return self.row(name, self.another_way(where, function), apart)

    def fused(self, name: str) -> dict[str, Any]:
        """The optimiser's loop over parameters in Python."""
        return self.row(name, self.step(self.like(MaskedImageModel), fused=False), 0.0)

    def compiled(self, name: str) -> dict[str, Any]:
        """The model compiled."""
        twin = self.like(MaskedImageModel)
        twin.compile()
        return self.row(name, self.step(self.model), self.same(twin), self.step(twin))

    def another_way(self, name: str, function: Callable[..., Tensor]) -> Call:
        """The step with another function in the place of one of the model's."""
        step = self.step(self.like(MaskedImageModel))

        def once() -> None:
            with replaced(name, function):
                step()

        return once

    def tokenizers(self) -> list[dict[str, Any]]:
        """The tokenizer alone: what its ways of computing gain over the way before."""
        view, masks = self.ready.token_view, self.ready.masks
        assert view is not None and masks is not None
        exact, cheap = TokenReader(self.vae), TokenReader(self.vae, fast_reading(self.setting))
        plain = ReferenceTokenizer(self.vae)
        ways: dict[str, Callable[[], Tensor]] = {
            "": lambda: plain.codes(view),
            READINGS[0]: lambda: exact.codes(view),
            READINGS[1]: lambda: cheap.codes(view),
            READINGS[2]: lambda: cheap.codes_at(view, masks.index),
        }
        names = list(ways)
        seconds = interleaved(ways, rounds=self.setting.rounds, device=self.setting.device)
        return [
            self.told(name, seconds[before], seconds[name], of="tokenizer")
            for before, name in zip(names, names[1:], strict=False)
        ]

    def row(
        self, name: str, without: Call, apart: float, within: Call | None = None
    ) -> dict[str, Any]:
        """Time one idea."""
        sides = {"without": without, "with": within or self.step(self.model)}
        seconds = interleaved(
            sides, rounds=self.setting.rounds, settle=1, device=self.setting.device
        )
        found = self.told(name, seconds["without"], seconds["with"])
        print(name, found["gain"], flush=True)
        return {**found, "gradients apart": apart}

    def told(
        self, name: str, without: Sequence[float], within: Sequence[float], of: str = "step"
    ) -> dict[str, Any]:
        """A row."""
        return {
            "idea": name,
            "size": self.setting.size,
            "batch": self.setting.batch,
            "of": of,
            "predicted": PREDICTED[name],
            "gain": times_faster(list(without), list(within)),
        }


def torchs_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """The kernel of torch, whatever the device."""
    mask = None if bias is None else bias.to(query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def unfused_attention(projected: Tensor, bias: Tensor | None) -> Tensor:
    """The kernel that a card without ours takes."""
    return attention.attend(*attention.split_projected(projected), bias).transpose(1, 2)


def kept_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Products written out, and the probabilities kept for the backward pass."""
    return attention.attention_probabilities(query, key, bias).to(value.dtype) @ value


def scaled_result(values: Tensor, linear: nn.Linear, scale: Tensor | None) -> Tensor:
    """LayerScale on what the layer gives."""
    return linear(values) if scale is None else linear(values) * scale  # type: ignore[no-any-return]


@contextmanager
def replaced(name: str, function: Callable[..., Tensor]) -> Iterator[None]:
    """Another function in the place of one of the model's, for a while."""
    places = [module for module in (attention, transformer) if hasattr(module, name)]
    chosen = [getattr(module, name) for module in places]
    try:
        for module in places:
            setattr(module, name, function)
        yield
    finally:
        for module, own in zip(places, chosen, strict=True):
            setattr(module, name, own)


# What the model does another way: the idea, the function that has it, and the one without.
WAYS: list[tuple[str, str, Callable[..., Tensor]]] = [
    ("attention kernel chosen by device and type", "attend", torchs_attention),
    ("attention's probabilities computed twice, not kept", "attend", kept_attention),
    ("LayerScale multiplies weights, not results", "scaled_linear", scaled_result),
]


if __name__ == "__main__":
    main()
