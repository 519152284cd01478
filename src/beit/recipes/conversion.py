"""`beit convert`: other people's weights into a folder of ours, and ours into their files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from beit.errors import UserError
from beit.files import atomic_write_bytes
from beit.interop.dalle import read_dalle
from beit.interop.export import Exported, to_reference, to_timm, to_transformers
from beit.interop.models import ForeignModel, read_model
from beit.nn.classifier import Classifier
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead, MaskedPixelHead, MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.recipes import saved_models
from beit.tokenizer import storage

Format = Literal["beit", "reference", "transformers", "timm"]
SUFFIXES: dict[str, tuple[str, ...]] = {"reference": (".pth", ".pt"), "timm": (".safetensors",)}


@dataclass(frozen=True)
class Options:
    """What a file may not say by itself, and what is wanted of it.

    Attributes:
        image_size: (height, width) where it is no square.
        heads: Attention heads where nothing says how many.
        average: Take a checkpoint's moving average of the weights.
        encoder_only: Leave the head out.
    """

    image_size: tuple[int, int] | None = None
    heads: int | None = None
    average: bool = False
    encoder_only: bool = False


def convert(
    source: str | Path, target: str | Path, to: Format, options: Options | None = None
) -> dict[str, Any]:
    """Convert a model; nothing is written unless all of it fits.

    Args:
        source: A folder of ours or of transformers, a `.pth` or `.safetensors` file, or DALL-E's
            `encoder.pkl`.
        target: A folder for beit and transformers, a `.pth` for the reference, a `.safetensors`
            for timm; it must not be there yet.
        to: Whose program is to read it.
        options: See there.

    Returns:
        What was read and written, and every assumption and omission under "notes".

    Raises:
        UserError: The source is refused, does not fit, or the target is in the way.
    """
    options = options or Options()
    path, out = Path(source), Path(target)
    _require_free(out, to)
    if path.suffix == ".pkl":
        return _convert_tokenizer(path, out, to)
    model = _read(path, options)
    head = None if options.encoder_only else model.head
    if to == "beit":
        notes = _save_ours(out, model, head)
        return _result(out, to, model, notes, None)
    exported = _exported(model, head, to)
    _write(out, exported)
    return _result(out, to, model, exported.notes, exported.arguments)


@dataclass(frozen=True)
class _Ours:
    """A folder of ours, as `ForeignModel` has other people's files."""

    encoder: Encoder
    head: saved_models.Head | None
    layout: str = "beit"
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


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


def _read(path: Path, options: Options) -> ForeignModel | _Ours:
    if path.is_dir() and "kind" in saved_models.read_config(path):
        encoder, head = saved_models.load_encoder_and_head(path)
        labels = saved_models.read_config(path).get("labels", ())
        return _Ours(encoder, head, labels=tuple(str(label) for label in labels))
    return read_model(
        path, image_size=options.image_size, heads=options.heads, average=options.average
    )


def _save_ours(
    out: Path,
    model: ForeignModel | _Ours,
    head: MaskedTokenHead | MaskedPixelHead | ClassifierHead | None,
) -> tuple[str, ...]:
    facts = {"converted_from": model.layout, "notes": list(model.notes)}
    if isinstance(head, ClassifierHead):
        saved_models.save_classifier(out, Classifier(model.encoder, head, model.labels), facts)
        return ()
    if head is None:
        saved_models.save_encoder(out, model.encoder, facts)
        return ("left out the head",) if model.head is not None else ()
    saved_models.save_masked_image_model(out, MaskedImageModel(model.encoder, head), facts)
    return ()


def _exported(
    model: ForeignModel | _Ours,
    head: MaskedTokenHead | MaskedPixelHead | ClassifierHead | None,
    to: Format,
) -> Exported:
    if to == "reference":
        return to_reference(model.encoder, head)
    if to == "timm":
        return to_timm(model.encoder, head)
    labels = model.labels if isinstance(head, ClassifierHead) else ()
    return to_transformers(model.encoder, head, labels)


def _write(out: Path, exported: Exported) -> None:
    """One file under the target's own name, or files in a folder of that name."""
    folder = out.parent if "" in exported.files else out
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in exported.files.items():
        atomic_write_bytes(out / name if name else out, data)


def _result(
    out: Path,
    to: Format,
    model: ForeignModel | _Ours,
    notes: tuple[str, ...],
    arguments: Mapping[str, Any] | None,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "out": str(out),
        "from": model.layout,
        "to": to,
        "encoder": asdict(model.encoder.config),
        "notes": [*model.notes, *notes],
    }
    return result if arguments is None else {**result, "timm": dict(arguments)}
