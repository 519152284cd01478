"""Plain vision Transformers as the projects that train them save them."""

from __future__ import annotations

from typing import Any

import torch


def prefixed(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def saved(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """A plain ViT's weights as a project saves them."""
    mlp = {"mlp.0.weight": torch.ones(2, 2), "last_layer.weight_v": torch.ones(3, 2)}
    moco = {"head.0.weight": torch.ones(2, 24), "head.1.running_mean": torch.ones(2)}
    mask = {"mask_token": torch.ones(1, 1, 8)}
    decoder = mask | {"decoder_pos_embed": torch.ones(1, 17, 8), "decoder_norm.bias": torch.ones(8)}
    return {
        "timm": body,
        "deit": {"model": body},
        "mae_pretrain_vit": {"model": body},
        "mae with its decoder": {"model": body | decoder, "optimizer": {}, "epoch": 3},
        "dino": body,
        "dino, teacher": {
            "student": prefixed("module.backbone.", body) | prefixed("module.head.", mlp),
            "teacher": prefixed("backbone.", body) | prefixed("head.", mlp),
            "epoch": 1,
        },
        "dino, student": {
            "student": prefixed("module.backbone.", body) | prefixed("module.head.", mlp)
        },
        "moco": {
            "arch": "vit_small",
            "state_dict": prefixed("module.base_encoder.", body | moco)
            | prefixed("module.momentum_encoder.", {n: v + 1 for n, v in body.items()})
            | {"module.predictor.0.weight": torch.ones(2, 2)},
        },
        "moco, one process": {"state_dict": prefixed("base_encoder.", body | moco)},
        "moco, the average alone": {
            "state_dict": prefixed("module.momentum_encoder.", body | moco)
        },
        "distributed": {"state_dict": prefixed("module.", body)},
    }[name]


LAYOUTS = (
    *("timm", "deit", "mae_pretrain_vit", "mae with its decoder", "dino", "dino, teacher"),
    *("dino, student", "moco", "moco, one process", "moco, the average alone", "distributed"),
)
