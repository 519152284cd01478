"""Writing our models for the reference, for transformers and for timm, as files in memory."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import save

from beit.errors import UserError
from beit.interop.models import Head, state_of
from beit.interop.names import (
    BLOCK,
    INDEX_SUFFIX,
    MASK,
    REFERENCE,
    SHARED_TABLE,
    TIMM,
    TRANSFORMERS,
    Layout,
)
from beit.interop.normalisation import IMAGENET
from beit.interop.translate import Tensors, few, to_theirs
from beit.interop.weight_files import torch_bytes
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead, MaskedPixelHead, MaskedTokenHead
from beit.nn.position import relative_position_index

_BICUBIC = 3  # PIL's number, which image processors write down


@dataclass(frozen=True)
class Exported:
    """Files by name, what was copied or left out, and what the other side must be told."""

    files: dict[str, bytes]
    notes: tuple[str, ...] = ()
    arguments: dict[str, Any] | None = None  # of timm.create_model


def with_tables_a_layer(config: EncoderConfig, ours: Tensors) -> tuple[EncoderConfig, Tensors]:
    """Give every block its own copy of the shared bias table: the same function of a picture."""
    assert config.relative_positions == "shared"
    table = ours[SHARED_TABLE]
    kept = {name: value for name, value in ours.items() if name != SHARED_TABLE}
    for number in range(config.depth):
        kept[BLOCK.replace("#", str(number)) + "bias_table"] = table.clone()
    return replace(config, relative_positions="per-layer"), kept


def to_reference(
    encoder: Encoder,
    head: Head | MaskedPixelHead | None,
    labels: Sequence[str] = (),
    centre_share: float | None = None,
) -> Exported:
    """The reference's `.pth`: {"model": state dict}, with its index buffers, strictly loadable.

    How pictures are prepared and the classes' names stand beside it, under "mean", "deviation",
    "centre_share" (of the sides, that the crop for evaluation keeps) and "labels", where the
    reference does not look.
    """
    config, ours = encoder.config, state_of(encoder, head)
    theirs = _written(REFERENCE, config, ours, _kind(head, ours))
    for name in [name for name in theirs if name.endswith("relative_position_bias_table")]:
        stem = name.rpartition(".")[0]
        theirs[f"{stem}.{INDEX_SUFFIX}"] = relative_position_index(config.grid)
    beside: dict[str, Any] = {"mean": list(IMAGENET.mean), "deviation": list(IMAGENET.deviation)}
    if labels:
        beside["labels"] = list(labels)
    if centre_share is not None:
        beside["centre_share"] = centre_share
    return Exported({"": torch_bytes({"model": theirs, **beside})})


def to_transformers(
    encoder: Encoder,
    head: Head | MaskedPixelHead | None,
    labels: Sequence[str] = (),
    centre_share: float = 1.0,
) -> Exported:
    """A folder for `from_pretrained`: config.json, weights, and an image processor's config.

    Without a head it is a BeitModel, whose last LayerNorm (it cannot be left away) is the identity
    that a fresh LayerNorm is.

    Args:
        encoder: What to write.
        head: What stands on top of it.
        labels: The names of a classifier's classes.
        centre_share: Of the sides of a picture, that the crop for evaluation keeps.

    Raises:
        UserError: Pictures or patches are no squares: transformers' BEiT cuts a rectangle's bias
            tables the wrong way round and cannot add its absolute positions.
    """
    config, ours = encoder.config, state_of(encoder, head)
    require_square(config)
    kind = _kind(head, ours)
    theirs, notes = _written(TRANSFORMERS, config, ours, kind), []
    architecture = "BeitForMaskedImageModeling"
    if kind in ("mean", "special"):
        architecture = "BeitForImageClassification"
    elif not kind:
        architecture = "BeitModel"
        theirs = {name.removeprefix("beit."): value for name, value in theirs.items()}
        theirs["pooler.layernorm.weight"] = torch.ones(config.width)
        theirs["pooler.layernorm.bias"] = torch.zeros(config.width)
        notes.append("BeitModel's pooler got a LayerNorm as it is before training: ours has none")
    described = hub_config(config, head, kind, labels) | {"architectures": [architecture]}
    files = {
        "model.safetensors": save(theirs, {"format": "pt"}),
        "config.json": as_json(described),
        "preprocessor_config.json": as_json(hub_processor(config, centre_share)),
    }
    if centre_share < 1:
        notes.append("transformers' image processor squeezes pictures that are no squares")
    return Exported(files, tuple(notes))


def require_square(config: EncoderConfig) -> None:
    """Refuse what transformers' BEiT computes wrongly or not at all."""
    if config.image_size[0] != config.image_size[1] or config.patch_size[0] != config.patch_size[1]:
        raise UserError(
            "transformers' BEiT works on square pictures and patches only, and this model has "
            f"pictures of {config.image_size[0]}x{config.image_size[1]}; write it for timm instead"
        )


def to_timm(
    encoder: Encoder,
    head: Head | MaskedPixelHead | None,
    labels: Sequence[str] = (),
    centre_share: float | None = None,
) -> Exported:
    """A safetensors file that `timm.create_model(..., checkpoint_path=FILE)` loads strictly.

    timm's beit_* models have a bias table a layer, so a shared one is copied into each; they have
    no mask embedding and no prediction of tokens. What `create_model` must be told (how pictures
    are prepared is its `pretrained_cfg_overlay`) and the classes' names stand in the file's header.
    """
    config, ours = encoder.config, state_of(encoder, head)
    notes: list[str] = []
    if config.relative_positions == "shared":
        config, ours = with_tables_a_layer(config, ours)
        notes.append("copied the shared bias table into every layer, as timm's models have it")
    ours.pop(MASK)
    kind = _kind(head, ours)
    if kind == "tokens":  # its LayerNorm treats tokens singly, as timm's `norm` does
        ours = {name: value for name, value in ours.items() if "head.output" not in name}
        kind = "special norm"
    notes.append(
        "left out the mask embedding" + _and_the_head(head) + ", which timm has no use for"
    )
    notes.append("feed it pictures normalised with ImageNet's mean and deviation, as here")
    theirs = _written(TIMM, config, ours, kind)
    arguments = _timm_arguments(config, head, kind)
    if centre_share is not None:
        arguments["pretrained_cfg_overlay"]["crop_pct"] = centre_share
    if not kind:
        theirs["norm.weight"], theirs["norm.bias"] = (
            torch.ones(config.width),
            torch.zeros(config.width),
        )
        notes.append("timm's last LayerNorm is as it is before training: ours has none")
    told = {"timm": json.dumps(arguments)} | (
        {"labels": json.dumps(list(labels))} if labels else {}
    )
    return Exported({"": save(theirs, told)}, tuple(notes), arguments)


def _and_the_head(head: Head | MaskedPixelHead | None) -> str:
    return " and the linear layer to visual tokens" if isinstance(head, MaskedTokenHead) else ""


def _kind(head: Head | MaskedPixelHead | None, ours: Tensors) -> str:
    if isinstance(head, MaskedPixelHead):
        raise UserError("this model predicts pixels; no other program has a head for that")
    if isinstance(head, MaskedTokenHead):
        return "tokens"
    if isinstance(head, ClassifierHead):
        return str(head.pool)
    assert not any(name.startswith("head.") for name in ours)
    return ""


def _written(layout: Layout, config: EncoderConfig, ours: Tensors, kind: str) -> Tensors:
    """Tensors under a layout's names; what it has no name for is refused."""
    table = layout.body | layout.heads.get(kind, {})
    kernel = (config.channels, *config.patch_size)
    theirs = to_theirs(table, ours, kernel)
    nameless = sorted(set(ours) - set(_back(table, config.depth)))
    if nameless:
        raise UserError(f"the {layout.name} layout has no name for {few(nameless)}")
    return theirs


def _back(table: dict[str, str], depth: int) -> list[str]:
    return [
        name.replace("#", str(number))
        for own in table.values()
        for name in own.split(" + ")
        for number in range(depth if "#" in name else 1)
    ]


def hub_config(
    config: EncoderConfig, head: Head | MaskedPixelHead | None, kind: str, labels: Sequence[str]
) -> dict[str, Any]:
    """What transformers' config.json says of an encoder and its head."""
    described: dict[str, Any] = {
        "model_type": "beit",
        "image_size": config.image_size[0],
        "patch_size": config.patch_size[0],
        "num_channels": config.channels,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "use_mask_token": True,
        "use_absolute_position_embeddings": config.absolute_positions,
        "use_relative_position_bias": config.relative_positions == "per-layer",
        "use_shared_relative_position_bias": config.relative_positions == "shared",
        "layer_scale_init_value": config.layer_scale or 0.0,
        "drop_path_rate": config.drop_path,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "use_mean_pooling": kind != "special",
    }
    if isinstance(head, MaskedTokenHead):
        described["vocab_size"] = head.vocabulary
    if isinstance(head, ClassifierHead):
        described |= hub_labels(head.output.out_features, labels)
    return described


def hub_labels(count: int, labels: Sequence[str]) -> dict[str, Any]:
    """The classes' names in transformers' config.json; it makes some up where there are none.

    Raises:
        UserError: There are more or fewer names than classes.
    """
    names = list(labels) or [f"LABEL_{number}" for number in range(count)]
    if len(names) != count:
        raise UserError(f"{len(names)} labels were given for {count} classes")
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def hub_processor(config: EncoderConfig, centre_share: float = 1.0) -> dict[str, Any]:
    """What transformers' image processor is to do to pictures."""
    size = {"height": config.image_size[0], "width": config.image_size[1]}
    return {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        "size": {name: round(side / centre_share) for name, side in size.items()},
        "resample": _BICUBIC,
        "do_center_crop": centre_share < 1,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET.mean),
        "image_std": list(IMAGENET.deviation),
        "do_reduce_labels": False,
    }


def _timm_arguments(
    config: EncoderConfig, head: Head | MaskedPixelHead | None, kind: str
) -> dict[str, Any]:
    """What `timm.create_model` must be told to build the same model."""
    return {
        "model_name": "beit_base_patch16_224",
        "img_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "use_abs_pos_emb": config.absolute_positions,
        "use_rel_pos_bias": config.relative_positions == "per-layer",
        "init_values": config.layer_scale or 0.0,  # None would be left out, and mean 0.1
        "num_classes": head.output.out_features if isinstance(head, ClassifierHead) else 0,
        "global_pool": "avg" if kind == "mean" else "token",
        "pretrained_cfg_overlay": {
            "input_size": [config.channels, *config.image_size],
            "mean": list(IMAGENET.mean),
            "std": list(IMAGENET.deviation),
        },
    }


def as_json(value: dict[str, Any]) -> bytes:
    """A JSON file's bytes."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
