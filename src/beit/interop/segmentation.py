"""Reading other people's segmenters (BEiT with UPerNet): the reference's and transformers'.

Its encoder is read as any other (`beit.interop.models`); what stands on top is read here.
"""

# K classes, C channels of the decoder

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from beit.errors import UserError
from beit.interop.infer import Hints
from beit.interop.names import CONTAINERS, INDEX_SUFFIX
from beit.interop.segmentation_names import DECODER_LAYOUTS, HUB_BLOCKS, REFERENCE, DecoderLayout
from beit.interop.translate import Tensors, expanded, few
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import POOLING, PYRAMID, DecoderConfig, default_layers
from beit.nn.encoder import Encoder
from beit.nn.segmenter import Segmenter, build_segmenter

MOST_NUMBERED = 16  # of anything that a row numbers
# transformers counts the embeddings as 1 and block 0 as 2: its out_indices 3 is our layer 1.
INDEX_OF_LAYER_0 = 2
_DECODER = "decode_head."


@dataclass(frozen=True)
class SegmenterParts:
    """A segmenter's file in two: what any encoder's file holds, and the rest.

    Attributes:
        encoder: The encoder's values under the names of an encoder's file.
        decoder: The decoder's and the auxiliary head's tensors, under the file's names.
        layout: Whose names these are.
        labels: The classes' names, where the file has them.
        padding: Blocks that were there only to be counted, and were left out (see
            `beit.interop.segmentation_export`).
    """

    encoder: dict[str, Any]
    decoder: Tensors
    layout: DecoderLayout
    labels: tuple[str, ...] = ()
    padding: int = 0

    def adjusted(self, hints: Hints) -> Hints:
        """Hints from a config.json that counts the blocks that were left out."""
        if not self.padding:
            return hints
        blocks = 1 + max(_block_number(name) for name in self.encoder)
        share = (blocks - 1) / (blocks - 1 + self.padding)
        return replace(hints, drop_path=round(hints.drop_path * share, 12))


def split_segmenter(read: Mapping[str, Any], where: str) -> SegmenterParts | None:
    """Take a file apart; None when it holds no segmenter.

    Args:
        read: What the file holds.
        where: What the file is called in a complaint.

    Raises:
        UserError: What stands beside the encoder holds something else than tensors.
    """
    inside = next((read[name] for name in CONTAINERS if isinstance(read.get(name), Mapping)), read)
    values = {str(name): value for name, value in inside.items()}
    if not any(name.startswith(_DECODER) for name in values):
        return None
    layout = max(DECODER_LAYOUTS, key=lambda layout: len(set(renames(layout)) & set(values)))
    decoder = {name: v for name, v in values.items() if name.startswith(layout.decoder)}
    odd = [name for name, value in decoder.items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"{where} is no state dict: {few(sorted(odd))} are not tensors")
    rest = {n.removeprefix(layout.backbone): v for n, v in values.items() if n not in decoder}
    padding = 0
    if layout is not REFERENCE:
        rest, padding = _without_padding(rest)
    decoder = {
        name: value.detach().float().contiguous() if value.is_floating_point() else value
        for name, value in decoder.items()
    }
    return SegmenterParts(rest, decoder, layout, _labels(read), padding)


def segmenter_on(
    encoder: Encoder, parts: SegmenterParts, said: Mapping[str, Any] | None, where: str
) -> tuple[Segmenter, tuple[str, ...]]:
    """Build our segmenter on an encoder that was read.

    Args:
        encoder: Kept, not copied.
        parts: What stands on top of it.
        said: A transformers folder's config.json; None for a file of the reference's.
        where: What the file is called in a complaint.

    Returns:
        The segmenter in evaluation mode, and what was assumed.

    Raises:
        UserError: Something does not fit; the first names that differ are named.
    """
    config, notes = _config(encoder.config, parts, said, where)
    labels = parts.labels
    if labels and len(labels) != config.classes:
        notes, labels = (*notes, f"left out {len(labels)} names for {config.classes} classes"), ()
    with torch.device("meta"):  # nothing is made of what a file claims before all of it is there
        wanted = own_tensors(build_segmenter(encoder, config))
    ours = _fitting(wanted, parts, where)
    segmenter = build_segmenter(encoder, config, labels)
    segmenter.load_state_dict(ours, strict=False)  # the encoder has its own; the rest is complete
    return segmenter.eval(), notes


def own_tensors(segmenter: Segmenter) -> Tensors:
    """What a segmenter has beside its encoder, under our names."""
    state = segmenter.state_dict()
    return {name: value for name, value in state.items() if not name.startswith("encoder.")}


def renames(layout: DecoderLayout) -> dict[str, str]:
    """Their name to ours for every tensor that a layout has a row for."""
    return {theirs[0]: ours[0] for theirs, ours in expanded(layout.rows, MOST_NUMBERED)}


def _fitting(wanted: Tensors, parts: SegmenterParts, where: str) -> Tensors:
    """The tensors to load; every name, every shape and every kind must be right."""
    complaint = f"{where} does not fit the {parts.layout.name} layout"
    rows = renames(parts.layout)
    theirs_of = {ours: theirs for theirs, ours in rows.items()}
    unexpected = [name for name in parts.decoder if rows.get(name) not in wanted]
    if unexpected:
        raise UserError(f"{complaint}: unexpected {few(sorted(unexpected))}")
    ours = {rows[name]: value for name, value in parts.decoder.items()}
    missing = [theirs_of.get(name, name) for name in wanted if name not in ours]
    if missing:
        raise UserError(f"{complaint}: no {few(missing)}")
    for name, value in wanted.items():
        if ours[name].shape != value.shape:
            shapes = f"{tuple(ours[name].shape)} instead of {tuple(value.shape)}"
            raise UserError(f"{complaint}: {theirs_of[name]} has shape {shapes}")
        if ours[name].dtype != value.dtype:
            kinds = f"{ours[name].dtype} instead of {value.dtype}"
            raise UserError(f"{complaint}: {theirs_of[name]} holds {kinds}")
    return ours


def _config(
    encoder: EncoderConfig, parts: SegmenterParts, said: Mapping[str, Any] | None, where: str
) -> tuple[DecoderConfig, tuple[str, ...]]:
    """What the decoder is made of, from shapes and from what a config.json says besides."""
    layout = parts.layout
    shape = _shape(parts, layout.classifier, where)
    hidden = _their_name(layout, "auxiliary.convolution.convolution.weight")
    auxiliary = any(name.startswith("auxiliary_head.") for name in parts.decoder)
    second = _their_name(layout, "decoder.pyramid.0.deconvolutions.1.weight")
    coarse = layout is REFERENCE and second not in parts.decoder  # its patches are of 8 px
    common: dict[str, Any] = {
        "kind": "upernet",
        "classes": shape[0],
        "channels": shape[1],
        "auxiliary": auxiliary,
        "auxiliary_channels": _shape(parts, hidden, where)[0] if auxiliary else 256,
        "norm": "batch",
        "pyramid": tuple(scale / 2 for scale in PYRAMID) if coarse else PYRAMID,
    }
    if said is None:
        if layout is not REFERENCE:
            raise UserError(
                f"{where} does not say which layers its segmenter reads; "
                "give the folder with its config.json"
            )
        layers = default_layers(encoder.depth)
        numbers = ", ".join(map(str, layers))
        note = f"assumed that the segmenter reads layers {numbers} (counted from 0)"
        return DecoderConfig(layers=layers, **common), (note,)
    return _hub_config(common, said, where)


def _hub_config(
    common: Mapping[str, Any], said: Mapping[str, Any], where: str
) -> tuple[DecoderConfig, tuple[str, ...]]:
    """With what transformers' config.json says; what we would not compute is refused."""
    if said.get("auxiliary_num_convs", 1) != 1 or said.get("auxiliary_concat_input", False):
        raise UserError(
            f"{where}: its auxiliary head has auxiliary_num_convs "
            f"{said.get('auxiliary_num_convs')} and auxiliary_concat_input "
            f"{said.get('auxiliary_concat_input')}; only 1 and false are known here"
        )
    try:
        indices = [int(index) for index in said["out_indices"]]
        pooling = tuple(int(side) for side in said.get("pool_scales", POOLING))
        hidden = int(said.get("auxiliary_channels", common["auxiliary_channels"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: its config.json has no list of out_indices, or impossible values ({error})"
        ) from error
    layers = tuple(index - INDEX_OF_LAYER_0 for index in indices)
    if min(layers, default=-1) < 0:
        raise UserError(
            f"{where}: out_indices {indices} read the embeddings before any block, or count from "
            "the end; only layers' outputs, 2 and more, are known here"
        )
    after = ", ".join(str(1 + layer) for layer in layers)
    note = (
        f"its out_indices {', '.join(map(str, indices))} make transformers read after {after} "
        "blocks (it counts the embeddings as 1), and so does this model"
    )
    told = {"layers": layers, "pooling": pooling, "dropout": 0.0}
    if not common["auxiliary"]:
        told["auxiliary_channels"] = hidden  # of no consequence, but it is kept
    config = DecoderConfig(**{**common, **told})
    return config, (note,)


def _their_name(layout: DecoderLayout, own: str) -> str:
    """Their name for a tensor of ours."""
    return next(theirs for theirs, ours in renames(layout).items() if ours == own)


def _shape(parts: SegmenterParts, name: str, where: str) -> tuple[int, ...]:
    weight = parts.decoder.get(name)
    if weight is None or weight.dim() != 4 or 0 in weight.shape:
        raise UserError(
            f"{where} does not fit the {parts.layout.name} layout: no 4-D {name} that says how "
            "large its segmenter is"
        )
    return tuple(weight.shape)


def _labels(read: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that the reference's library writes beside the weights."""
    meta = read.get("meta")
    classes = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not isinstance(classes, (list, tuple)):
        return ()
    return tuple(str(name) for name in classes)


def _block_number(name: str) -> int:
    """The number of the block that a tensor of transformers' belongs to, or -1."""
    stem = next((stem for stem in HUB_BLOCKS if name.startswith(stem)), None)
    number = "" if stem is None else name.removeprefix(stem).partition(".")[0]
    return int(number) if number.isdecimal() and len(number) < 5 else -1


def _without_padding(rest: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Leave out last blocks that are all zeros, as no block is that was ever used."""
    blocks: dict[int, list[Any]] = {}
    for name, value in rest.items():
        if INDEX_SUFFIX not in name:
            blocks.setdefault(_block_number(name), []).append(value)
    numbers = sorted(number for number in blocks if number >= 0)
    first = 1 + max((number for number in numbers if not _all_zeros(blocks[number])), default=0)
    kept = {name: value for name, value in rest.items() if _block_number(name) < first}
    return kept, len([number for number in numbers if number >= first])


def _all_zeros(values: list[Any]) -> bool:
    return all(isinstance(value, Tensor) and not bool(value.any()) for value in values)
