"""Modules under the class paths of the DALL-E package, to save as its released files were saved.

Written afresh and smaller than the package allows; the package itself is used where it is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Conv2d(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        deviation = (inputs * kernel**2) ** -0.5
        self.w = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * deviation)
        self.b = nn.Parameter(0.1 * torch.randn(outputs))

    def forward(self, features: Tensor) -> Tensor:
        return functional.conv2d(features, self.w, self.b, padding=self.w.shape[-1] // 2)


class EncoderBlock(nn.Module):
    kernels = (3, 3, 3, 1)

    def __init__(self, inputs: int, outputs: int, layers: int) -> None:
        super().__init__()
        self.post_gain = 1 / layers**2
        self.device = torch.device("cpu")
        hidden = outputs // 4
        self.id_path = Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths = (inputs, hidden, hidden, hidden, outputs)
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for number, kernel in enumerate(self.kernels, start=1):
            path[f"relu_{number}"] = nn.ReLU()
            path[f"conv_{number}"] = Conv2d(widths[number - 1], widths[number], kernel)
        self.res_path = nn.Sequential(path)

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.post_gain * self.res_path(features)
        identity: Tensor = self.id_path(features)
        return identity + residual


class DecoderBlock(EncoderBlock):
    kernels = (1, 3, 3, 3)


class _Model(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.blocks(features)
        return output

    def stack(
        self,
        widths: tuple[int, ...],
        first: Conv2d,
        last: nn.Module,
        block: type[EncoderBlock],
        between: tuple[str, Any],
    ) -> None:
        blocks: OrderedDict[str, nn.Module] = OrderedDict([("input", first)])
        width = int(first.w.shape[0])
        for number, wanted in enumerate(widths, start=1):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for place in (1, 2):
                group[f"block_{place}"] = block(width, wanted, 2 * len(widths))
                width = wanted
            if number < len(widths):
                group[between[0]] = between[1]()
            blocks[f"group_{number}"] = nn.Sequential(group)
        tail = OrderedDict([("relu", nn.ReLU()), ("conv", last)])
        self.blocks = nn.Sequential(OrderedDict([*blocks.items(), ("output", nn.Sequential(tail))]))


class Encoder(_Model):
    def __init__(self, vocabulary: int = 16) -> None:
        super().__init__()
        pool = ("pool", lambda: nn.MaxPool2d(kernel_size=2))
        widths = (8, 16, 32, 64)
        self.stack(widths, Conv2d(3, 8, 7), Conv2d(64, vocabulary, 1), EncoderBlock, pool)


class Decoder(_Model):
    def __init__(self, vocabulary: int = 16) -> None:
        super().__init__()
        double = ("upsample", lambda: nn.Upsample(scale_factor=2, mode="nearest"))
        widths = (64, 32, 16, 8)
        self.stack(widths, Conv2d(vocabulary, 12, 1), Conv2d(8, 6, 1), DecoderBlock, double)


_PATHS = {
    "dall_e.utils": (Conv2d,),
    "dall_e.encoder": (EncoderBlock, Encoder),
    "dall_e.decoder": (DecoderBlock, Decoder),
}


@contextmanager
def dalle_names() -> Iterator[None]:
    """Let the classes be pickled under the package's names, and only in here."""
    before = {name: sys.modules.get(name) for name in ("dall_e", *_PATHS)}
    sys.modules["dall_e"] = types.ModuleType("dall_e")
    own = {kind: kind.__module__ for kinds in _PATHS.values() for kind in kinds}
    for name, kinds in _PATHS.items():
        sys.modules[name] = types.ModuleType(name)
        for kind in kinds:
            kind.__module__ = name
            setattr(sys.modules[name], kind.__name__, kind)
    try:
        yield
    finally:
        for kind, own_name in own.items():
            kind.__module__ = own_name
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def save_models(folder: Path, *, archive: bool = True) -> tuple[nn.Module, nn.Module]:
    """Write encoder.pkl and decoder.pkl with random weights, in torch's new or old container."""
    torch.manual_seed(0)
    models = Encoder().eval(), Decoder().eval()
    centre(models[0])
    folder.mkdir(parents=True, exist_ok=True)
    with dalle_names(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old container looks for the classes' source
        for model, name in zip(models, ("encoder.pkl", "decoder.pkl"), strict=True):
            torch.save(model, folder / name, _use_new_zipfile_serialization=archive)
    return models


@torch.no_grad()
def centre(encoder: Any) -> None:
    """Make codes differ from place to place: a random encoder prefers one of them everywhere."""
    colours = nn.functional.interpolate(torch.rand(8, 3, 4, 4), scale_factor=8)
    encoder.blocks.output.conv.b -= encoder(0.8 * colours + 0.1).mean((0, 2, 3))


def package() -> types.ModuleType | None:
    """The DALL-E package, where it can be imported; what it needs only to download is replaced."""
    stand_in = "requests" not in sys.modules and _missing("requests")
    if stand_in:
        sys.modules["requests"] = types.ModuleType("requests")
    try:
        return importlib.import_module("dall_e")
    except ImportError:
        return None
    finally:
        if stand_in:
            del sys.modules["requests"]


def _missing(name: str) -> bool:
    return importlib.util.find_spec(name) is None
