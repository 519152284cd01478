"""The linear classifiers, one a layer, of the reference's linear evaluation.

Its checkpoint holds them alone: `state_dict` with `linear.0.weight` (K, 2 D) and `linear.0.bias`
and so on, maybe under `module.`; the encoder is the one that was probed, in a file of its own. Each
reads a block's output, not normalised: the special token and the mean of the patches, side by side.
"""

# B images, N patches, D width, K classes, L layers

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from beit.errors import UserError
from beit.files import read_json_object
from beit.interop.translate import few
from beit.interop.weight_files import read_tensors, torch_bytes
from beit.nn.encoder import Encoder

KIND = "linear-probes"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_NAME = re.compile(r"(?:module\.)?linear\.(\d{1,3})\.(weight|bias)")


class OnlyProbes(UserError):
    """A file holds linear probes where an encoder was wanted."""


@dataclass(frozen=True)
class LinearProbes:
    """A linear classifier on every layer: weights (L, K, 2 D) and biases (L, K)."""

    weights: Tensor
    biases: Tensor

    @property
    def layers(self) -> int:
        """L."""
        return len(self.weights)

    @property
    def classes(self) -> int:
        """K."""
        return int(self.weights.shape[1])

    def logits(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Classify by every layer.

        Args:
            encoder: The one that was probed.
            images: (B, 3, H, W) normalised floats.

        Returns:
            (L, B, K) logits.

        Raises:
            UserError: The encoder has another depth or width.
        """
        depth, width = encoder.config.depth, encoder.config.width
        if depth != self.layers or 2 * width != self.weights.shape[2]:
            raise UserError(
                f"these probes are for {self.layers} layers of width {self.weights.shape[2] // 2}, "
                f"and the encoder has {depth} of width {width}"
            )
        read = encoder(images, layers=range(depth)).layers
        features = [torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1) for tokens in read]
        return torch.stack(features) @ self.weights.mT + self.biases[:, None]

    def to_reference(self) -> dict[str, bytes]:
        """The reference's checkpoint, without its optimiser."""
        return {"": torch_bytes({"state_dict": self._named()})}

    def to_beit(self) -> dict[str, bytes]:
        """A folder of safetensors and JSON."""
        described = {"kind": KIND, "format": 1, "layers": self.layers, "classes": self.classes}
        text = json.dumps(described, indent=2) + "\n"
        return {WEIGHTS: save(self._named()), CONFIG: text.encode()}

    def _named(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for number in range(self.layers):
            named[f"linear.{number}.weight"] = self.weights[number].contiguous()
            named[f"linear.{number}.bias"] = self.biases[number].contiguous()
        return named


def probes_in(folder: Path) -> bool:
    """Whether a folder of ours says that it holds linear probes."""
    file = folder / CONFIG
    return file.is_file() and read_json_object(file).get("kind") == KIND


def require_no_probes(read: Mapping[str, Any], where: str) -> None:
    """Refuse a checkpoint of the reference's linear evaluation where an encoder is wanted.

    Raises:
        OnlyProbes: It is one.
    """
    if any(_NAME.fullmatch(name) for name in _state(read)):
        raise OnlyProbes(
            f"{where} holds the linear probes of the reference's evaluation and no encoder; give "
            "the file of the encoder that was probed"
        )


def read_probes(path: Path) -> LinearProbes:
    """Read a checkpoint of the reference's linear evaluation, or a folder of ours.

    Raises:
        UserError: It is refused, or is not whole.
    """
    state = _state(read_tensors(path / WEIGHTS if path.is_dir() else path))
    found: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    for name, value in state.items():
        match = _NAME.fullmatch(name)
        if match is None or not isinstance(value, Tensor) or not value.is_floating_point():
            raise UserError(f"{path} holds linear probes, and unexpected {name[:80]}")
        found[match[2]][int(match[1])] = value.detach().float()
    layers = range(len(found["weight"]))
    missing = [
        f"linear.{number}.{part}"
        for part in found
        for number in layers
        if number not in found[part]
    ]
    if missing or len(found["bias"]) != len(layers):
        raise UserError(f"{path} does not hold all its probes: no {few(missing) or 'weights'}")
    weights = [found["weight"][number] for number in layers]
    biases = [found["bias"][number] for number in layers]
    shapes = {(tuple(w.shape), tuple(b.shape)) for w, b in zip(weights, biases, strict=True)}
    if len(shapes) != 1 or weights[0].dim() != 2 or tuple(biases[0].shape) != weights[0].shape[:1]:
        raise UserError(f"{path} holds linear probes of impossible shapes")
    return LinearProbes(torch.stack(weights), torch.stack(biases))


def _state(read: Mapping[str, Any]) -> dict[str, Any]:
    inside = read.get("state_dict")
    return {str(n): v for n, v in (inside if isinstance(inside, Mapping) else read).items()}
