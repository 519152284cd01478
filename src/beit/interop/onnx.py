"""Graphs for other runtimes: ONNX and torch.export's `.pt2`, with any number of pictures.

What is written is run on real pictures by the runtime itself, and compared with ours, before
anybody gets it. Metadata say what to feed it: see `metadata_of`.
"""

# B images, N patches, D width, K classes

import hashlib
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from beit.errors import UserError
from beit.interop.normalisation import IMAGENET
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.nn.segmenter import Segmenter
from beit.weights import add_weights

Model = Encoder | Classifier | Segmenter
INPUT = "images"
BOUND = 1e-4  # of the largest output, and of 1 where that is smaller
LARGEST = 2**31 - 2**20  # bytes of weights; an ONNX file is one protobuf message
NEEDED = ("onnx", "onnxscript", "onnxruntime")
EXTRA_FILE = "beit.json"
NO_VIEW: Mapping[str, Any] = MappingProxyType({})
OUTPUTS = {
    "encoder": ("tokens", "(B, 1 + N, D), [S] first, before the last LayerNorm, a head's"),
    "classifier": ("logits", "(B, K)"),
    "segmenter": ("logits", "(B, K, h, w) at the decoder's own size; resize bilinearly"),
}


class Graph(NamedTuple):
    """A written graph, and how far its runtime was from ours on the pictures it was tried on."""

    data: bytes
    difference: float
    pictures: int
    metadata: dict[str, str]


class _Output(nn.Module):
    """A model with one input and one output."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised floats to what `OUTPUTS` says."""
        if isinstance(self.model, Classifier):
            return self.model(images)  # type: ignore[no-any-return]
        if isinstance(self.model, Segmenter):
            return self.model(images).logits  # type: ignore[no-any-return]
        return self.model(images).tokens  # type: ignore[no-any-return]


def to_onnx(
    model: Model, images: Tensor, labels: tuple[str, ...] = (), view: Mapping[str, Any] = NO_VIEW
) -> Graph:
    """Write a model as ONNX and try it with onnxruntime.

    Args:
        model: In float32.
        images: (B, 3, H, W) normalised real pictures to try it on; B >= 2.
        labels: The classes' names.
        view: How pictures are cut or seen, where it is known.

    Raises:
        UserError: The packages are missing, or the model is too large for one file.
        RuntimeError: onnxruntime computes something else.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{missing[0]} is not installed; run `pip install 'beit[onnx]'`")
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if size > LARGEST:
        raise UserError(
            f"the model has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB at most; "
            "use --to torch-export"
        )
    metadata = metadata_of(model, labels, view)
    data = _onnx_bytes(_exported(model, images), metadata)
    return _tried(data, _onnx_runtime(data), model, images, metadata)


def to_torch_export(
    model: Model, images: Tensor, labels: tuple[str, ...] = (), view: Mapping[str, Any] = NO_VIEW
) -> Graph:
    """Write a model as torch.export's archive and try it again after loading it.

    The pictures it was traced with are not kept, so that no pickle is in the archive. Metadata are
    the extra file `beit.json`. Arguments and errors are those of `to_onnx`.
    """
    metadata = metadata_of(model, labels, view)
    program = _exported(model, images)
    program._example_inputs = None
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={EXTRA_FILE: json.dumps(metadata)})
    with _quiet():
        again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return _tried(buffer.getvalue(), again, model, images, metadata)


def metadata_of(
    model: Model, labels: tuple[str, ...] = (), view: Mapping[str, Any] = NO_VIEW
) -> dict[str, str]:
    """What a user of the graph must know; every value is JSON.

    `kind`, `image_size` (height, width), `mean` and `deviation` of the pictures on [0, 1], `output`
    and its shape, `labels` of the classes, `weights_sha256` to tell which weights are in it, and
    where it is known `view`: how pictures are cut or seen, as a config.json of ours has it.
    """
    kind = _kind(model)
    config = _encoder_config(model)
    values: dict[str, Any] = {
        "kind": kind,
        "image_size": list(config.image_size),
        "mean": list(IMAGENET.mean),
        "deviation": list(IMAGENET.deviation),
        "output": list(OUTPUTS[kind]),
        "labels": list(labels),
        "weights_sha256": weights_sha256(model),
    }
    if view:
        values["view"] = dict(view)
    return {name: json.dumps(value) for name, value in values.items()}


def weights_sha256(model: nn.Module) -> str:
    """A digest of all weights with their names and shapes."""
    digest = hashlib.sha256()
    add_weights(digest, model.state_dict())
    return digest.hexdigest()


def _kind(model: Model) -> str:
    if isinstance(model, Classifier):
        return "classifier"
    return "segmenter" if isinstance(model, Segmenter) else "encoder"


def _encoder_config(model: Model) -> EncoderConfig:
    return model.config if isinstance(model, Encoder) else model.encoder.config


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporters warn of is their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@torch.no_grad()
def _exported(model: Model, images: Tensor) -> torch.export.ExportedProgram:
    assert len(images) >= 2, "one picture would be taken for a constant"
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        return torch.export.export(
            _Output(model).eval(), (images[:2],), dynamic_shapes={INPUT: {0: batch}}
        )


def _onnx_bytes(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    import onnx

    output = json.loads(metadata["output"])[0]
    with _quiet():
        written = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[output]
        )
    assert written is not None
    proto = written.model_proto
    proto.producer_name = "beit"
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def _onnx_runtime(data: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    return run


@torch.no_grad()
def _tried(
    data: bytes,
    run: Callable[[Tensor], Tensor],
    model: Model,
    images: Tensor,
    metadata: dict[str, str],
) -> Graph:
    """Compare on all the pictures at once and on one alone."""
    ours, difference, largest = _Output(model).eval(), 0.0, 1.0
    for batch in (images, images[:1]):
        expected, found = ours(batch), run(batch)
        assert found.shape == expected.shape, (found.shape, expected.shape)
        difference = max(difference, float((found - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    if not difference <= BOUND * largest:
        raise RuntimeError(f"the written graph differs by {difference:.2g} from the model")
    return Graph(data, difference, len(images), metadata)
