"""Writing our segmenters for the reference and for transformers, as files in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save

from beit.errors import UserError
from beit.interop import names
from beit.interop.export import (
    Exported,
    as_json,
    hub_config,
    hub_labels,
    hub_processor,
    require_square,
)
from beit.interop.models import state_of
from beit.interop.segmentation import INDEX_OF_LAYER_0, own_tensors, renames
from beit.interop.segmentation_names import REFERENCE, TRANSFORMERS, DecoderLayout
from beit.interop.told import OWN, PROCESSOR, SEGMENTING
from beit.interop.translate import Tensors, few, to_theirs
from beit.interop.weight_files import torch_bytes
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import PYRAMID, default_pyramid
from beit.nn.position import relative_position_index
from beit.nn.segmenter import Segmenter

NOTHING: Mapping[str, Any] = MappingProxyType({})
_REFERENCE_PATCHES = (8, 16)  # that its backbone makes a pyramid for
_IGNORED, _AUXILIARY_WEIGHT = 255, 0.4  # what transformers trains with, if it trains on


def segmentation_to_reference(
    segmenter: Segmenter, labels: Sequence[str] = (), facts: Mapping[str, Any] = NOTHING
) -> Exported:
    """The reference's `.pth` for its segmentation library: {"meta": ..., "state_dict": ...}.

    Its backbone has no mask embedding. What its configuration must say is in the notes.

    Args:
        segmenter: A UPerNet with batch norms.
        labels: The classes' names, where the segmenter does not know them.
        facts: How it sees pictures, its colours and how masks count, as our config.json has them;
            they stand beside the weights, where the reference does not look (colours: where it
            does).

    Raises:
        UserError: The reference has no such model.
    """
    config = segmenter.encoder.config
    _require_upernet(segmenter, "the reference")
    height, width = config.patch_size
    if height != width or height not in _REFERENCE_PATCHES:
        raise UserError(
            f"the reference makes a pyramid of patches of 8 or 16 px, not {height}x{width}"
        )
    _require_pyramid(segmenter, default_pyramid(config.patch_size), "the reference")
    theirs = {
        REFERENCE.backbone + name: value
        for name, value in _encoder(segmenter, names.REFERENCE, masked=False).items()
    }
    for name in [name for name in theirs if name.endswith("relative_position_bias_table")]:
        stem = name.rpartition(".")[0]
        theirs[f"{stem}.{names.INDEX_SUFFIX}"] = relative_position_index(config.grid)
    theirs |= _decoder(segmenter, REFERENCE)
    classes = list(labels) or list(segmenter.labels)
    meta: dict[str, Any] = {"CLASSES": classes} if classes else {}
    if facts.get("palette"):
        meta["PALETTE"] = facts["palette"]
    beside = {OWN: _segmenting(facts)} if _segmenting(facts) else {}
    notes = ["left out the mask embedding, which the reference has no use for in segmentation"]
    said = {
        "img_size": config.image_size,
        "out_indices": segmenter.config.layers,
        "channels": segmenter.config.channels,
        "pool_scales": segmenter.config.pooling,
    }
    told = ", ".join(f"{name}={_listed(value)}" for name, value in said.items())
    notes.append(f"the reference's configuration must say {told}")
    return Exported({"": torch_bytes({"meta": meta, "state_dict": theirs, **beside})}, tuple(notes))


def segmentation_to_transformers(
    segmenter: Segmenter, labels: Sequence[str] = (), facts: Mapping[str, Any] = NOTHING
) -> Exported:
    """A folder for `BeitForSemanticSegmentation.from_pretrained`.

    transformers counts the embeddings among the layers twice over: its out_indices i is what block
    i - 2 puts out (from 0), and i may not exceed the number of blocks, so that it cannot read the
    last one. For a segmenter that does, one more block of zeros is written, which is only there to
    be counted: it is never read, and the outputs are the same. `model_from_file` leaves it out.

    Args:
        segmenter: A UPerNet with batch norms, on squares.
        labels: The classes' names, where the segmenter does not know them.
        facts: How it sees pictures, its colours and how masks count, as our config.json has them;
            they stand in the image processor's file, which has words of its own for the last.

    Raises:
        UserError: transformers has no such model.
    """
    config, decoder = segmenter.encoder.config, segmenter.config
    _require_transformers(segmenter)
    masked = bool(segmenter.encoder.embeddings.mask_embedding.any())
    theirs, notes = _encoder(segmenter, names.TRANSFORMERS, masked), []
    written = config
    if decoder.layers[-1] == config.depth - 1:
        theirs |= _padding(theirs, config.depth)
        written = _one_block_more(config)
        notes.append(
            "added a last block of zeros that is never read, for transformers cannot read the "
            "last block it has"
        )
    theirs |= _decoder(segmenter, TRANSFORMERS)
    described = hub_config(written, None, "mean", ()) | {
        "architectures": ["BeitForSemanticSegmentation"],
        "use_mask_token": masked,
        "out_indices": [layer + INDEX_OF_LAYER_0 for layer in decoder.layers],
        "pool_scales": list(decoder.pooling),
        "use_auxiliary_head": decoder.auxiliary,
        "auxiliary_channels": decoder.auxiliary_channels,
        "auxiliary_num_convs": 1,
        "auxiliary_concat_input": False,
        "auxiliary_loss_weight": _AUXILIARY_WEIGHT,
        "semantic_loss_ignore_index": _IGNORED,
        **hub_labels(decoder.classes, list(labels) or segmenter.labels),
    }
    files = {
        "model.safetensors": save(theirs, {"format": "pt"}),
        "config.json": as_json(described),
        PROCESSOR: as_json(_processor(config, facts)),
    }
    if facts.get("view", {}).get("mode") == "slide":
        notes.append(
            "transformers' image processor squeezes whole pictures; it has no windows, through "
            "which this segmenter was measured"
        )
    return Exported(files, tuple(notes))


def _processor(config: EncoderConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """An image processor that brings pictures to the model's size, and says more to us."""
    reduced = {"do_reduce_labels": bool(facts.get("reduce_zero_label", False))}
    own = {OWN: _segmenting(facts)} if _segmenting(facts) else {}
    return hub_processor(config) | reduced | own


def _segmenting(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in SEGMENTING if facts.get(name) is not None}


def _require_transformers(segmenter: Segmenter) -> None:
    config, decoder, whose = segmenter.encoder.config, segmenter.config, "transformers"
    _require_upernet(segmenter, whose)
    require_square(config)
    _require_pyramid(segmenter, PYRAMID, whose)
    if decoder.channels != config.width:
        raise UserError(
            f"transformers' decoder is as wide as its encoder, {config.width}, and this one has "
            f"{decoder.channels} channels"
        )
    if list(decoder.layers) != sorted(set(decoder.layers)):
        raise UserError(
            f"transformers reads each layer once and in order, not {list(decoder.layers)}"
        )


def _require_upernet(segmenter: Segmenter, whose: str) -> None:
    config = segmenter.config
    if config.kind != "upernet" or config.norm != "batch":
        raise UserError(
            f"{whose} has UPerNet with batch norms only, and this segmenter is {config.kind} with "
            f"{config.norm} norms"
        )


def _require_pyramid(segmenter: Segmenter, wanted: Sequence[float], whose: str) -> None:
    if segmenter.config.pyramid != tuple(wanted):
        raise UserError(
            f"{whose} has a pyramid of {list(wanted)} here, and this segmenter one of "
            f"{list(segmenter.config.pyramid)}"
        )


def _encoder(segmenter: Segmenter, layout: names.Layout, masked: bool) -> Tensors:
    """The encoder's tensors under a layout's names, with its mask embedding or not."""
    config, ours = segmenter.encoder.config, state_of(segmenter.encoder, None)
    if not masked:
        ours.pop(names.MASK)
    return to_theirs(layout.body, ours, (config.channels, *config.patch_size))


def _decoder(segmenter: Segmenter, layout: DecoderLayout) -> Tensors:
    ours = own_tensors(segmenter)
    theirs = {name: ours[own] for name, own in renames(layout).items() if own in ours}
    nameless = sorted(set(ours) - set(renames(layout).values()))
    if nameless:
        raise UserError(f"the {layout.name} layout has no name for {few(nameless)}")
    return {name: value.contiguous() for name, value in theirs.items()}


def _padding(theirs: Tensors, depth: int) -> Tensors:
    """A block of zeros after the last: every tensor of block 0, under the next number."""
    stem = "beit.encoder.layer."
    first = f"{stem}0."
    return {
        f"{stem}{depth}.{name.removeprefix(first)}": torch.zeros_like(value)
        for name, value in theirs.items()
        if name.startswith(first)
    }


def _one_block_more(config: EncoderConfig) -> EncoderConfig:
    """With stochastic depth that is the same in the blocks that there were."""
    stretched = config.drop_path * config.depth / max(1, config.depth - 1)
    return replace(config, depth=config.depth + 1, drop_path=min(stretched, 0.99))


def _listed(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
