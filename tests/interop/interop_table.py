"""The table of docs/interop.md, measured: `PYTHONPATH=tests python -m interop.interop_table`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from beit.commands.sharing.graphs import real_pictures
from beit.interop.dalle import read_dalle
from beit.interop.foreign import read_foreign
from beit.interop.infer import Hints
from beit.interop.linear_probes import LinearProbes
from beit.interop.models import model_from_tensors
from beit.interop.onnx import Model, to_onnx, to_torch_export
from beit.interop.timm_models import from_module
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import decoder_config
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.segmenter import build_segmenter
from beit.tokenizer.dvae import map_pixels
from interop.backbone_files import LAYOUTS, saved
from interop.dalle_modules import save_models
from interop.interop_models import (
    HEADS,
    POSITIONS,
    every_patch,
    gradients_differ,
    hub_model,
    randomise,
    timm_model,
    vit_model,
)
from interop.test_segmentation_parity import gradients_differ as segmenter_gradients_differ
from interop.test_segmentation_parity import read as read_segmenter
from interop.test_segmentation_parity import segmenting_model

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
    slow: bool = False


def _parity(theirs: Any, size: tuple[int, int], masked: bool = False) -> Parity:
    own = model_from_tensors(theirs.state_dict(), Hints(size, HEADS))
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
    return _compared(logits, expected, lambda: gradients_differ(own, theirs))


def _compared(
    logits: torch.Tensor, expected: torch.Tensor, differences: Callable[[], dict[str, float]]
) -> Parity:
    torch.autograd.backward(
        [logits.square().mean() + logits.mean(), expected.square().mean() + expected.mean()]
    )
    differ = max(differences().values())
    return Parity(float((logits - expected).detach().abs().max()), differ)


def _worst(found: list[Parity]) -> Parity:
    gradients = [parity.gradients for parity in found if parity.gradients is not None]
    return Parity(max(parity.outputs for parity in found), max(gradients, default=None))


def _every(measure: Callable[[str, bool], Parity]) -> Parity:
    """The worst of all positions, with and without LayerScale."""
    return _worst(
        [measure(positions, scaled) for positions in POSITIONS for scaled in (False, True)]
    )


def _hub(kind: str) -> Parity:
    masked = "Masked" in kind
    return _every(
        lambda positions, scaled: _parity(hub_model(kind, positions, scaled), (32, 32), masked)
    )


def _segmenter(positions: str, scaled: bool) -> Parity:
    theirs = segmenting_model(positions, scaled)
    own = read_segmenter(theirs)
    images = torch.randn(2, 3, 48, 48)
    seen: list[torch.Tensor] = []
    hook = theirs.auxiliary_head.register_forward_hook(lambda *args: seen.append(args[2]))
    expected, found = theirs(images).logits, own(images)
    hook.remove()
    assert found.auxiliary is not None
    both = [torch.cat([each.flatten() for each in pair]) for pair in (found, (expected, seen[0]))]
    return _compared(both[0], both[1], lambda: segmenter_gradients_differ(own, theirs))


def _timm(size: tuple[int, int]) -> Parity:
    names = ("beit_base_patch16_224", "beitv2_base_patch16_224")
    found = [
        _every(lambda p, scaled, name=name: _parity(timm_model(p, scaled, size, name=name), size))  # type: ignore[misc]
        for name in names
    ]
    return _worst(found)


def _features(tokens: torch.Tensor, theirs: Any, images: torch.Tensor) -> Parity:
    with torch.no_grad():
        differ = theirs.norm(tokens) - theirs.forward_features(images)
    return Parity(float(differ.abs().max()), None)


@torch.no_grad()
def _by_name() -> Parity:
    """What is done with a model of timm's once its weights are there."""
    models = [vit_model(), vit_model(no_embed_class=True, init_values=0.1)]
    models.append(timm_model("per-layer", True, (32, 32)))
    images = torch.randn(4, 3, 32, 32)
    return _worst(
        [_features(from_module(m, "it").encoder(images).tokens, m, images) for m in models]
    )


@torch.no_grad()
def _layouts() -> Parity:
    theirs, images, found = vit_model(num_classes=0), torch.randn(4, 3, 32, 32), []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(LAYOUTS):
            file = Path(folder) / f"{number}.pth"
            torch.save(saved(name, theirs.state_dict()), file)
            tokens = read_foreign(file, heads=HEADS).encoder(images).tokens
            found.append(_features(tokens, theirs, images))
    return _worst(found)


@torch.no_grad()
def _probes() -> Parity:
    """Against the features of the reference's evaluation, written out."""
    encoder, images = _encoder(), torch.randn(4, 3, 32, 32)
    probes = LinearProbes(torch.randn(2, 5, 48) * 48**-0.5, torch.randn(2, 5))
    found = probes.logits(encoder, images)
    for layer, tokens in enumerate(encoder(images, layers=[0, 1]).layers):
        features = torch.cat((tokens[:, 0], torch.mean(tokens[:, 1:], dim=1)), dim=-1)
        linear = torch.nn.Linear(48, 5)
        linear.weight.copy_(probes.weights[layer])
        linear.bias.copy_(probes.biases[layer])
        found[layer] -= linear(features)
    return Parity(float(found.abs().max()), None)


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


def _encoder() -> Encoder:
    config = EncoderConfig((32, 32), (8, 8), 24, 2, HEADS, relative_positions="shared")
    encoder = Encoder(config).eval()
    randomise(encoder)
    return encoder


def _graph(kind: str, write: Any) -> Parity:
    """On pictures of digits, by the other runtime."""
    encoder = _encoder()
    model: Model = encoder
    if kind == "classifier":
        model = Classifier(encoder, ClassifierHead(24, 5, initial_factor=1.0)).eval()
    elif kind == "segmenter":
        sizes = {"channels": 8, "auxiliary_channels": 8}
        config = decoder_config("upernet", encoder.config, 5, **sizes)
        model = build_segmenter(encoder, config).eval()
    randomise(model)
    return Parity(write(model, real_pictures("digits", (32, 32))).difference, None)


PTH = "`.pth`, `.pt`, `.safetensors`"
HUB = "folder"
CLASSIFY, SEGMENT = "BeitForImageClassification", "BeitForSemanticSegmentation"
ROWS = (
    Row("reference, pre-training", PTH, "`.pth`", None),
    Row("reference, classifier", PTH, "`.pth`", None),
    Row("reference, segmenter (UPerNet)", PTH, "`.pth`", None),
    Row("reference, linear probes", "`.pth`, `.pt`", "`.pth`", _probes),
    Row(
        "transformers `BeitForMaskedImageModeling`",
        HUB,
        HUB,
        lambda: _hub("BeitForMaskedImageModeling"),
    ),
    Row(f"transformers `{CLASSIFY}`", HUB, HUB, lambda: _hub(CLASSIFY)),
    Row(f"transformers `{SEGMENT}`", HUB, HUB, lambda: _every(_segmenter)),
    Row("transformers `BeitModel`", HUB, HUB, None),
    Row("timm `beit_*`, `beitv2_*`, square", PTH, "`.safetensors`", lambda: _timm((32, 32))),
    Row("timm `beit_*`, `beitv2_*`, rectangle", PTH, "`.safetensors`", lambda: _timm((16, 40))),
    Row("plain ViT: timm, DeiT", PTH, "no", lambda: _parity(vit_model(), (32, 32))),
    Row("MAE, DINO, MoCo v3: the encoder", PTH, "no", _layouts),
    Row("timm's models by name", "`timm:NAME`, a page's folder", "no", _by_name),
    Row("DALL-E's tokenizer", "`encoder.pkl`, `decoder.pkl`", "no", _dalle),
    Row("the hub", "`hf://owner/name`", "`hf://owner/name`", None),
    *(
        Row(f"{what}, {kind}", "no", suffix, partial(_graph, kind, write), True)
        for what, suffix, write in (
            ("ONNX", "`.onnx`", to_onnx),
            ("torch.export", "`.pt2`", to_torch_export),
        )
        for kind in ("encoder", "classifier", "segmenter")
    ),
)


def _power(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def table(*, quick: bool = False) -> str:
    """Markdown, with every parity that is measured here; `quick` leaves the slow ones open."""
    torch.manual_seed(0)
    lines = [HEADER]
    for row in ROWS:
        skipped = row.measure is None or (quick and row.slow)
        parity = None if row.measure is None or skipped else row.measure()
        outputs, gradients = ("–", "–") if parity is None else map(_power, parity)
        lines.append(f"| {row.what} | {row.source} | {row.target} | {outputs} | {gradients} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(table() + "\n")
