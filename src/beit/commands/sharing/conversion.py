"""`beit convert`: other people's weights into a folder of ours, and ours into their files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from beit.commands.assembly import saved_models
from beit.commands.assembly.foreign import facts_of
from beit.commands.sharing.graphs import DIGITS, real_pictures
from beit.commands.using.finished import usual_share
from beit.errors import UserError
from beit.files import atomic_write_bytes
from beit.interop import linear_probes, onnx
from beit.interop.dalle import is_dalle, read_dalle
from beit.interop.export import Exported, to_reference, to_timm, to_transformers
from beit.interop.foreign import read_foreign
from beit.interop.hub import located
from beit.interop.normalisation import NAMED
from beit.interop.segmentation_export import (
    segmentation_to_reference,
    segmentation_to_transformers,
)
from beit.interop.told import segmenting_told
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead, MaskedPixelHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.segmenter import Segmenter
from beit.tokenizer import storage
from beit.tokenizer.dvae import DiscreteVAE

Format = Literal["beit", "reference", "transformers", "timm", "onnx", "torch-export"]
FORMATS: tuple[Format, ...] = (
    *("beit", "reference", "transformers", "timm"),
    *("onnx", "torch-export"),
)
SUFFIXES: dict[str, tuple[str, ...]] = {
    "reference": (".pth", ".pt"),
    "timm": (".safetensors",),
    "onnx": (".onnx",),
    "torch-export": (".pt2",),
}
_STRUCTURE = {"kind", "format", "encoder", "decoder", "head", "labels"}  # what a model says itself


@dataclass(frozen=True)
class Options:
    """What a file may not say by itself, and what is wanted of it.

    Attributes:
        image_size: (height, width) where it is no square.
        heads: Attention heads where nothing says how many.
        average: Take a checkpoint's moving average of the weights.
        encoder_only: Leave the head out.
        normalisation: What the model was fed with, "imagenet" or "half" (0.5 for every colour);
            wins over what its files say.
        data: Pictures that a graph is tried on.
    """

    image_size: tuple[int, int] | None = None
    heads: int | None = None
    average: bool = False
    encoder_only: bool = False
    normalisation: str | None = None
    data: str = DIGITS


@dataclass(frozen=True)
class _Model:
    """What was read, whoever it is from."""

    encoder: Encoder
    head: saved_models.Head | None = None
    segmenter: Segmenter | None = None
    layout: str = "beit"
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def view(self) -> Mapping[str, Any]:
        """How pictures are cut or seen; empty where nobody says."""
        view = self.facts.get("view")
        return view if isinstance(view, Mapping) else {}

    @property
    def centre_share(self) -> float | None:
        """Of the sides, that the crop for evaluation keeps; None where nobody says."""
        share = self.view.get("centre_share")
        return None if share is None else float(share)


def convert(
    source: str | Path, target: str | Path, to: Format, options: Options | None = None
) -> dict[str, Any]:
    """Convert a model; nothing is written unless all of it fits.

    Args:
        source: A folder of ours, of transformers or of timm, a `.pth` or `.safetensors` file,
            `timm:NAME`, `hf://owner/name`, or DALL-E's `encoder.pkl`.
        target: A folder for beit and transformers, a `.pth` for the reference, a `.safetensors`
            for timm, an `.onnx`, a `.pt2`; it must not be there yet.
        to: Whose program is to read it.
        options: See there.

    Returns:
        What was read and written, and every assumption and omission under "notes".

    Raises:
        UserError: The source is refused, does not fit, or the target is in the way.
    """
    options = options or Options()
    out = Path(target)
    _require_free(out, to)
    if options.normalisation is not None and options.normalisation not in NAMED:
        raise UserError(f"normalisation is one of {', '.join(NAMED)}, not {options.normalisation}")
    path = located(source)
    if is_dalle(path):
        return _convert_tokenizer(path, out, to)
    try:
        model = _read(path, options)
    except linear_probes.OnlyProbes:
        return _convert_probes(path, out, to)
    if options.encoder_only:
        had = model.head is not None or model.segmenter is not None
        notes = (*model.notes, "left out the head") if had else model.notes
        model = replace(model, head=None, segmenter=None, labels=(), notes=notes, facts={})
    if to == "beit":
        _save_ours(out, model)
        return _result(out, to, model)
    if to in ("onnx", "torch-export"):
        return _write_graph(out, to, model, options.data)
    exported = _exported(model, to)
    _write(out, exported)
    result = _result(out, to, model, exported.notes)
    return result if exported.arguments is None else {**result, "timm": dict(exported.arguments)}


def _require_free(out: Path, to: Format) -> None:
    suffixes = SUFFIXES.get(to)
    if suffixes is not None and out.suffix not in suffixes:
        raise UserError(f"{out} is to be one file for {to}: name it {out.stem}{suffixes[0]}")
    if out.exists() and (suffixes is not None or not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose another OUT or remove it")


def _convert_tokenizer(path: Path, out: Path, to: Format) -> dict[str, Any]:
    if to != "beit":
        raise UserError(f"{path} is a tokenizer, which only beit has a format for: use --to beit")
    read = read_dalle(path)
    storage.save(read.model, out)
    return {
        "out": str(out),
        "from": "dall-e",
        "to": to,
        "vocabulary": read.model.vocabulary,
        "notes": list(read.notes),
    }


def _convert_probes(path: Path, out: Path, to: Format) -> dict[str, Any]:
    """The reference's linear classifiers, one a layer, which come without their encoder."""
    if to not in ("beit", "reference"):
        raise UserError(
            f"{path} holds linear probes without an encoder: use --to beit or reference"
        )
    probes = linear_probes.read_probes(path)
    written = probes.to_beit() if to == "beit" else probes.to_reference()
    _write(out, Exported(written))
    return {
        "out": str(out),
        "from": "beit" if path.is_dir() else "reference",
        "to": to,
        "layers": probes.layers,
        "classes": probes.classes,
        "notes": ["linear probes, one a layer; their encoder is in another file"],
    }


def _read(path: Path, options: Options) -> _Model:
    if path.is_dir() and linear_probes.probes_in(path):
        raise linear_probes.OnlyProbes(str(path))
    if path.is_dir() and "kind" in (facts := saved_models.read_config(path)):
        model = _read_ours(path, facts)
        _refuse_otherwise(path, model.encoder.config, options)
        return model
    found = read_foreign(
        path,
        image_size=options.image_size,
        heads=options.heads,
        average=options.average,
        fed=None if options.normalisation is None else NAMED[options.normalisation],
    )
    told = found.layout, found.labels, found.notes, facts_of(found)
    return _Model(found.encoder, found.head, found.segmenter, *told)


def _refuse_otherwise(path: Path, config: EncoderConfig, options: Options) -> None:
    """See that nothing is said of a model of ours that it says of itself, and says otherwise."""
    height, width = config.image_size
    if options.image_size is not None and tuple(options.image_size) != config.image_size:
        raise UserError(
            f"{path} takes pictures of {height}x{width}, which --image-size cannot change: leave "
            "it out"
        )
    if options.heads not in (None, config.heads):
        raise UserError(f"{path} has {config.heads} attention heads, not {options.heads}")
    if options.normalisation not in (None, "imagenet"):
        raise UserError(
            f"{path} is a model of beit's, whose inputs are normalised by ImageNet's mean and "
            "deviation: leave --normalisation out"
        )
    if options.average:
        raise UserError(
            f"{path} holds one set of weights, which is the average where its run kept one: leave "
            "--ema out"
        )


def _read_ours(path: Path, facts: Mapping[str, Any]) -> _Model:
    model = saved_models.load(path)
    if isinstance(model, DiscreteVAE):
        raise UserError(f"{path} holds a tokenizer, which only beit has a format for")
    if isinstance(model, Encoder):
        return _Model(model, facts=facts)
    if isinstance(model, Segmenter):
        return _Model(model.encoder, None, model, labels=model.labels, facts=facts)
    labels = model.labels if isinstance(model, Classifier) else ()
    return _Model(model.encoder, model.head, labels=labels, facts=facts)


def _save_ours(out: Path, model: _Model) -> None:
    told = {name: value for name, value in model.facts.items() if name not in _STRUCTURE}
    facts = told | {"converted_from": model.layout, "notes": list(model.notes)}
    head = model.head
    if model.segmenter is not None:
        saved_models.save_segmenter(out, model.segmenter, facts)
    elif isinstance(head, ClassifierHead):
        saved_models.save_classifier(out, Classifier(model.encoder, head, model.labels), facts)
    elif head is None:
        saved_models.save_encoder(out, model.encoder, facts)
    else:
        saved_models.save_masked_image_model(out, MaskedImageModel(model.encoder, head), facts)


def _exported(model: _Model, to: Format) -> Exported:
    encoder, head, labels = model.encoder, model.head, model.labels
    if model.segmenter is not None:
        if to == "timm":
            raise UserError("timm has no segmenters: add --encoder-only to write the encoder")
        facts = segmenting_told(model.facts, "its config.json")
        if to == "reference":
            return segmentation_to_reference(model.segmenter, labels, facts)
        return segmentation_to_transformers(model.segmenter, labels, facts)
    share = model.centre_share
    if to == "reference":
        return to_reference(encoder, head, labels, share)
    if to == "timm":
        return to_timm(encoder, head, labels, share)
    if share is None:  # its image processor has to say something: what we do ourselves
        size = encoder.config.image_size
        share = usual_share(size) if isinstance(head, ClassifierHead) else 1.0
    return to_transformers(encoder, head, labels, share)


def _write_graph(out: Path, to: Format, model: _Model, data: str) -> dict[str, Any]:
    """Write a graph, and say how far its runtime is from us on real pictures."""
    notes: list[str] = []
    whole: onnx.Model = model.segmenter if model.segmenter is not None else model.encoder
    if isinstance(model.head, ClassifierHead):
        whole = Classifier(model.encoder, model.head, model.labels)
    elif model.head is not None:
        what = "pixels" if isinstance(model.head, MaskedPixelHead) else "visual tokens"
        notes.append(f"left out the head that predicts {what}, with its LayerNorm")
    images = real_pictures(data, model.encoder.config.image_size)
    write = onnx.to_onnx if to == "onnx" else onnx.to_torch_export
    graph = write(whole.eval(), images, model.labels, model.view)
    runtime = "onnxruntime" if to == "onnx" else "torch.export"
    notes.append(
        f"{runtime} gives the same within {graph.difference:.1e} on {graph.pictures} pictures of "
        f"{data}"
    )
    _write(out, Exported({"": graph.data}))
    return _result(out, to, model, tuple(notes)) | {
        "difference": graph.difference,
        "metadata": graph.metadata,
    }


def _write(out: Path, exported: Exported) -> None:
    """One file under the target's own name, or files in a folder of that name."""
    folder = out.parent if "" in exported.files else out
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in exported.files.items():
        atomic_write_bytes(out / name if name else out, data)


def _result(out: Path, to: Format, model: _Model, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "out": str(out),
        "from": model.layout,
        "to": to,
        "encoder": asdict(model.encoder.config),
        "labels": len(model.labels),
        "notes": [*model.notes, *notes],
    }
