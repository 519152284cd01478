"""Reading other people's models as ours: find the layout, translate, infer, load strictly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.errors import UserError
from beit.files import read_json_object
from beit.interop.infer import Hints, Inferred, infer_config
from beit.interop.linear_probes import require_no_probes
from beit.interop.names import (
    BESIDE,
    INDEX_SUFFIX,
    LAYOUTS,
    MASK,
    MOCO_PREFIXES,
    PATCHES,
    VIT,
    Layout,
)
from beit.interop.normalisation import IMAGENET, fold
from beit.interop.plain_vit import completed, reason_against
from beit.interop.segmentation import segmenter_on, split_segmenter
from beit.interop.told import Prepared, file_told, read_prepared
from beit.interop.translate import Tensors, depth_of, few, their_names, to_ours
from beit.interop.unwrap import unwrapped
from beit.interop.weight_files import WEIGHTS, read_tensors
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead, MaskedPixelHead, MaskedTokenHead
from beit.nn.position import relative_position_index
from beit.nn.segmenter import Segmenter

Head = MaskedTokenHead | ClassifierHead
UNTOLD = (
    "nothing says what its pictures were normalised with, and ImageNet's mean and deviation are "
    "assumed: where it was 0.5 for every colour (Microsoft's BEiT), take what "
    "`beit convert --normalisation half` makes of it"
)
MOCO_SMALL, MOCO_SMALL_HEADS = 384, 12  # its heads are half as wide as everybody else's


@dataclass(frozen=True)
class ForeignModel:
    """An encoder, its head if it has one, and what was assumed or left out on the way.

    `layout` says whose names the file used; `labels` are the classes' names where a file has them;
    `prepared` is how pictures were prepared, where a file says so; `segmenter` is the whole model,
    on the same encoder, where the file held one; `left_out` are the file's own names of what was
    not taken.
    """

    encoder: Encoder
    head: Head | None
    layout: str
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    prepared: Prepared = Prepared()
    segmenter: Segmenter | None = None
    left_out: tuple[str, ...] = ()


def model_from_file(
    path: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    heads: int | None = None,
    average: bool = False,
) -> ForeignModel:
    """Read a model of the reference's, transformers', timm's, or a plain vision Transformer.

    It takes pictures as they were normalised for it: `beit.interop.foreign.read_foreign` gives one
    that takes ours.

    Args:
        path: A `.pth`, `.pt` or `.safetensors` file, or a transformers folder.
        image_size: (height, width), where the file does not say and it is no square.
        heads: Attention heads, where nothing says how many.
        average: Take the moving average of the weights from a checkpoint that has both.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        UserError: The file is refused, or does not fit; the first names that differ are named.
    """
    file, hints = Path(path), Hints(image_size, heads)
    labels: tuple[str, ...] = ()
    prepared = read_prepared(file)
    config_notes: list[str] = []
    config: dict[str, Any] | None = None
    if file.is_dir():
        config = read_json_object(file / "config.json")
        hints, labels = _hub_hints(file, config, hints, config_notes)
        file = _hub_weights(file)
    read = read_tensors(file)
    require_no_probes(read, str(file))
    if config is None:
        hints, labels, prepared = file_told(file, read, hints)
    parts = split_segmenter(read, str(file))
    if parts is not None:
        read, hints, labels = parts.encoder, parts.adjusted(hints), labels or parts.labels
    tensors, prefix, notes, dropped = unwrapped(read, str(file), average)
    if hints.heads is None and _is_moco_small(prefix, tensors):
        hints = replace(hints, heads=MOCO_SMALL_HEADS)
        notes.append(f"MoCo v3's small model has {MOCO_SMALL_HEADS} attention heads")
    model = model_from_tensors(tensors, hints, str(file))
    notes = [*config_notes, *notes, *model.notes]
    if parts is not None:
        parts = replace(parts, labels=labels)
        segmenter, told = segmenter_on(model.encoder, parts, config, str(file))
        model, notes, labels = (
            replace(model, segmenter=segmenter),
            [*notes, *told],
            segmenter.labels,
        )
    if len(labels) not in (0, _classes(model)):
        notes, labels = [*notes, f"left out {len(labels)} names for {_classes(model)} classes"], ()
    left_out = (*dropped, *(prefix + name for name in model.left_out))
    return replace(model, notes=tuple(notes), labels=labels, prepared=prepared, left_out=left_out)


def model_from_tensors(
    tensors: Mapping[str, Tensor], hints: Hints | None = None, where: str = "the state dict"
) -> ForeignModel:
    """Build our model from a state dict in any layout we know; see `model_from_file`."""
    theirs = {name: value for name, value in tensors.items() if INDEX_SUFFIX not in name}
    layout, theirs = _layout_of(theirs, where)
    theirs, left_out, notes = _without_beside(layout, theirs)
    reason = reason_against(theirs)
    if reason is not None:
        raise UserError(f"{where} is no encoder of beit's: {reason}")
    key_biases = [name for name in theirs if layout is VIT and name.endswith("qkv.bias")]
    if layout is VIT:
        theirs, filled = completed(theirs, None if hints is None else hints.image_size)
        notes += filled
    kind = _head_kind(layout, theirs)
    table = layout.body | layout.heads.get(kind, {})
    ours = to_ours(layout, table, theirs, where)
    kernel = theirs.get(next(name for name, own in layout.body.items() if own == PATCHES))
    inferred = infer_config(ours, kernel, hints or Hints(), where)
    notes += inferred.notes
    if key_biases:
        notes.append("left out the bias on the keys, which the softmax does not see")
        left_out += [f"{name} (its keys)" for name in key_biases]
    names = their_names(table, inferred.config.depth)
    if kind.endswith("norm"):
        norm = [names.get(name, name) for name in ours if name.startswith("head.")]
        left_out += [name if name in tensors else name.removeprefix("beit.") for name in norm]
        ours = {name: value for name, value in ours.items() if not name.startswith("head.")}
        notes.append("left out the last LayerNorm: it belongs to a head here, and there is none")
    _require_same_index(tensors, inferred, where)
    complaint = f"{where} does not fit the {layout.name} layout"
    with torch.device("meta"):  # nothing is made of what a file claims before all of it is there
        empty = Encoder(inferred.config), _head(kind, ours, inferred.config.width, where)
    ours = _fitting(state_of(*empty), ours, names, complaint)
    encoder, head = Encoder(inferred.config), _head(kind, ours, inferred.config.width, where)
    for prefix, module in (("encoder.", encoder), ("head.", head)):
        if module is not None:
            own = {n.removeprefix(prefix): v for n, v in ours.items() if n.startswith(prefix)}
            module.load_state_dict(own, strict=True)
    return ForeignModel(encoder.eval(), head, layout.name, tuple(notes), left_out=tuple(left_out))


def for_our_pictures(model: ForeignModel) -> ForeignModel:
    """A model that takes pictures as they are normalised here, whatever it was trained with.

    The reference's segmenters had ImageNet's; of others' bare files nobody can know.
    """
    fed = model.prepared.fed
    if fed is None:
        told = UNTOLD if model.segmenter is None else None
    else:
        told = fold(model.encoder, fed)
    if told is None:
        return model
    prepared = model.prepared._replace(fed=IMAGENET)
    return replace(model, notes=(*model.notes, told), prepared=prepared)


def _is_moco_small(prefix: str, tensors: Tensors) -> bool:
    special = tensors.get("cls_token")
    return prefix in MOCO_PREFIXES and special is not None and special.shape[-1] == MOCO_SMALL


def _classes(model: ForeignModel) -> int:
    if model.segmenter is not None:
        return model.segmenter.classes
    return model.head.output.out_features if isinstance(model.head, ClassifierHead) else 0


def _hub_weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds neither {' nor '.join(WEIGHTS)}")


def _hub_hints(
    folder: Path, config: Mapping[str, Any], given: Hints, notes: list[str]
) -> tuple[Hints, tuple[str, ...]]:
    """What a transformers config.json says beyond shapes; refuse what we would not compute."""
    if config.get("model_type") != "beit":
        raise UserError(
            f"{folder / 'config.json'} describes a {config.get('model_type')!r}, not a beit"
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(
            f"{folder}: hidden_act is {config['hidden_act']!r}; only gelu is known here"
        )
    epsilon = config.get("layer_norm_eps", 1e-12)
    if epsilon != 1e-6:
        notes.append(f"its layer_norm_eps is {epsilon}; here it is 1e-6, as in the reference")
    size = config.get("image_size", 224)
    try:
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        hints = Hints(
            given.image_size or (height, width),
            given.heads or int(config.get("num_attention_heads", 12)),
            float(config.get("layer_scale_init_value", 0.1)),
            float(config.get("drop_path_rate", 0.1)),
        )
        kind = str(config.get("architectures"))
        classifies = "Classification" in kind or "Segmentation" in kind
        names = config.get("id2label") if classifies else None
        named = {int(number): str(label) for number, label in (names or {}).items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} has impossible values ({error})") from error
    return hints, tuple(named[number] for number in sorted(named))


def _layout_of(theirs: Tensors, where: str) -> tuple[Layout, Tensors]:
    """The layout that knows most of the names; a bare BeitModel is given its prefix first."""
    if "embeddings.cls_token" in theirs:
        theirs = {f"beit.{name}": value for name, value in theirs.items()}
    best = max(LAYOUTS, key=lambda layout: _known(layout, theirs))
    if not _known(best, theirs):
        raise UserError(
            f"{where} is in no layout known here (reference, timm, transformers, plain ViT): it "
            f"holds {few(sorted(theirs)) or 'nothing'}"
        )
    return best, theirs


def _known(layout: Layout, theirs: Tensors) -> int:
    return len(set(_names_in(layout, theirs)) & set(theirs))


def _names_in(layout: Layout, theirs: Tensors) -> list[str]:
    """Every name that a layout has for a file's depth, heads included."""
    names: list[str] = []
    depth = depth_of(layout, theirs)
    for table in (layout.body, *layout.heads.values()):
        for stack in their_names(table, depth).values():
            names += stack.split(" + ")
    return names


def _without_beside(layout: Layout, theirs: Tensors) -> tuple[Tensors, list[str], list[str]]:
    """Leave out MAE's decoder, name it and say so; its mask token is the decoder's."""
    beside = [name for name in theirs if name.startswith(BESIDE)]
    if layout is not VIT or not beside:
        return theirs, [], []
    beside += ["mask_token"] if "mask_token" in theirs else []
    kept = {name: value for name, value in theirs.items() if name not in beside}
    return kept, beside, [f"left out what is not the encoder: {few(sorted(beside))}"]


def _head_kind(layout: Layout, theirs: Tensors) -> str:
    """The first kind of head whose every name is there; more specific kinds stand first."""
    kinds = (kind for kind, table in layout.heads.items() if set(table) <= set(theirs))
    return next(kinds, "")


def _head(kind: str, ours: Tensors, width: int, where: str) -> Head | None:
    weight = ours.get("head.output.weight")
    if weight is None:
        return None
    if weight.dim() != 2 or weight.shape[1] != width:
        raise UserError(
            f"{where}: its head has shape {tuple(weight.shape)}, for a width of {width}"
        )
    outputs = int(weight.shape[0])
    if kind == "tokens":
        return MaskedTokenHead(width, outputs).eval()
    return ClassifierHead(width, outputs, "mean" if kind == "mean" else "special").eval()


def _require_same_index(tensors: Mapping[str, Tensor], inferred: Inferred, where: str) -> None:
    """The buffers that say which bias belongs to which pair must say what ours say."""
    buffers = {name: value for name, value in tensors.items() if INDEX_SUFFIX in name}
    if not buffers:
        return
    own = relative_position_index(inferred.config.grid)
    for name, value in buffers.items():
        if value.shape != own.shape or not torch.equal(value.long(), own):
            raise UserError(
                f"{where}: {name} numbers the pairs of patches otherwise than BEiT does"
            )


def state_of(encoder: Encoder, head: Head | MaskedPixelHead | None) -> Tensors:
    """A model's tensors under our names, as the tables have them."""
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    beside = {} if head is None else head.state_dict()
    return state | {f"head.{name}": value for name, value in beside.items()}


def _fitting(wanted: Tensors, ours: Tensors, names: dict[str, str], complaint: str) -> Tensors:
    """The tensors to load; every name and every shape must be there."""
    ours = dict(ours)
    if MASK not in ours:  # told by `infer_config`
        ours[MASK] = torch.zeros(wanted[MASK].shape)
    missing = [names.get(name, name) for name in wanted if name not in ours]
    if missing:
        raise UserError(f"{complaint}: no {few(missing)}")
    extra = [names.get(name, name) for name in ours if name not in wanted]
    if extra:
        raise UserError(f"{complaint}: unexpected {few(extra)}")
    for name, value in wanted.items():
        if ours[name].shape != value.shape:
            shapes = f"{tuple(ours[name].shape)} instead of {tuple(value.shape)}"
            raise UserError(f"{complaint}: {names.get(name, name)} has shape {shapes}")
        if not ours[name].is_floating_point():
            raise UserError(f"{complaint}: {names.get(name, name)} holds no floating-point numbers")
    return ours
