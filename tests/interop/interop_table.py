"""The table of docs/interop.md, measured: `PYTHONPATH=tests python -m interop.interop_table`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from beit.interop.dalle import read_dalle
from beit.interop.infer import Hints
from beit.interop.models import model_from_tensors
from beit.nn.masked_image_model import MaskedImageModel
from beit.tokenizer.dvae import map_pixels
from interop.dalle_modules import save_models
from interop.interop_models import (
    POSITIONS,
    every_patch,
    gradients_differ,
    hub_model,
    timm_model,
    vit_model,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "interop.md"
HEADER = (
    "| what | read from | written to | outputs differ by | gradients differ by |\n"
    "|---|---|---|---|---|"
)


class Parity(NamedTuple):
    """The largest absolute difference of outputs, the largest relative one of gradients."""

    outputs: float
    gradients: float | None


class Row(NamedTuple):
    what: str
    source: str
    target: str
    measure: Callable[[], Parity] | None


def _parity(theirs: Any, size: tuple[int, int], masked: bool = False) -> Parity:
    own = model_from_tensors(theirs.state_dict(), Hints(size, 4))
    images = torch.randn(4, 3, *size)
    if masked:
        grid = torch.rand(4, size[0] // 8, size[1] // 8) > 0.5
        expected = theirs(images, bool_masked_pos=grid.flatten(1)).logits
        logits = MaskedImageModel(own.encoder, own.head)(images, every_patch(grid))  # type: ignore[arg-type]
    else:
        expected = theirs(images)
        expected = getattr(expected, "logits", expected)
        assert own.head is not None
        logits = own.head(own.encoder(images).tokens)
    torch.autograd.backward(
        [logits.square().mean() + logits.mean(), expected.square().mean() + expected.mean()]
    )
    differ = max(gradients_differ(own, theirs).values())
    return Parity(float((logits - expected).detach().abs().max()), differ)


def _worst(found: list[Parity]) -> Parity:
    return Parity(
        max(parity.outputs for parity in found), max(parity.gradients or 0.0 for parity in found)
    )


def _hub(kind: str) -> Parity:
    masked = "Masked" in kind
    return _worst(
        [
            _parity(hub_model(kind, positions, scaled), (32, 32), masked)
            for positions in POSITIONS
            for scaled in (False, True)
        ]
    )


def _timm(size: tuple[int, int]) -> Parity:
    return _worst(
        [
            _parity(timm_model(positions, scaled, size), size)
            for positions in POSITIONS
            for scaled in (False, True)
        ]
    )


def _dalle() -> Parity:
    with tempfile.TemporaryDirectory() as folder:
        encoder, decoder = save_models(Path(folder))
        model = read_dalle(Path(folder) / "encoder.pkl").model
    images = torch.rand(16, 3, 32, 32)
    with torch.no_grad():
        codes = encoder(map_pixels(images)).argmax(1)
        assert torch.equal(model.codes(images), codes)
        one_hot = torch.nn.functional.one_hot(codes, 16).permute(0, 3, 1, 2).float()
        return Parity(float((model.decode(one_hot) - decoder(one_hot)).abs().max()), None)


PTH = "`.pth`, `.pt`, `.safetensors`"
HUB = "folder"
ROWS = (
    Row("reference, pre-training", PTH, "`.pth`", None),
    Row("reference, classifier", PTH, "`.pth`", None),
    Row(
        "transformers `BeitForMaskedImageModeling`",
        HUB,
        HUB,
        lambda: _hub("BeitForMaskedImageModeling"),
    ),
    Row(
        "transformers `BeitForImageClassification`",
        HUB,
        HUB,
        lambda: _hub("BeitForImageClassification"),
    ),
    Row("transformers `BeitModel`", HUB, HUB, None),
    Row("timm `beit_*`, `beitv2_*`, square", PTH, "`.safetensors`", lambda: _timm((32, 32))),
    Row("timm `beit_*`, `beitv2_*`, rectangle", PTH, "`.safetensors`", lambda: _timm((16, 40))),
    Row("plain ViT: timm, DeiT", PTH, "no", lambda: _parity(vit_model(), (32, 32))),
    Row("MAE, DINO, MoCo v3: the encoder", PTH, "no", None),
    Row("DALL-E's tokenizer", "`encoder.pkl`, `decoder.pkl`", "no", _dalle),
)


def _power(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def table() -> str:
    """Markdown, with every parity that is measured here."""
    torch.manual_seed(0)
    lines = [HEADER]
    for row in ROWS:
        parity = None if row.measure is None else row.measure()
        outputs, gradients = ("–", "–") if parity is None else map(_power, parity)
        lines.append(f"| {row.what} | {row.source} | {row.target} | {outputs} | {gradients} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(table() + "\n")
