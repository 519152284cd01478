"""How many bytes a picture does the forward pass keep for the backward pass, and which operation?

Counted on any machine: what autograd saved at three pictures less what it saved at two, so that
weights, their casts and the attention bias, which are kept once, drop out. Storages count once.
On CUDA the allocator's peak is told beside it.
"""

import argparse
import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import beit
from beit.batch import Masks
from beit.commands.assembly.build import choose_device, encoder_config_of, masked_image_model
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.presets import PRESETS
from beit.nn.saved_bytes import saved_bytes
from beit.objectives.masked import masked_token_loss
from harness import memory_of, record

LIMITS = {"base": 65.0, "large": 174.0}  # megabytes, counted
VOCABULARY, PLACES = 8192, 75


def memory(options: argparse.Namespace) -> Path:
    """Measure some sizes and write the record."""
    device = choose_device(options.device)
    sizes = options.sizes or ["base", "large"]
    rows = [_row(size, preset, device) for size in sizes for preset in PRESETS]
    return record(f"growth-memory-{device.type}", rows, options.results)


def _row(size: str, preset: str, device: torch.device) -> dict[str, Any]:
    recipe = beit.recipe(size, {"encoder.preset": preset})
    real = device.type == "cuda"
    with torch.device(device if real else "meta"):
        model = masked_image_model(recipe, VOCABULARY).train()
    model = model if real else model.to_empty(device=device)
    config = encoder_config_of(recipe.encoder)
    # Bytes are counted, numbers are not looked at: on a CPU none is computed.
    with nullcontext() if real else FakeTensorMode(allow_non_fake_inputs=True):
        saved = saved_a_picture(model, device)
    total = sum(saved.values()) / 1e6
    row = {
        "size": size,
        "preset": preset,
        "megabytes a picture": round(total, 2),
        "limit": LIMITS.get(size),
        "of the limit": round(total / LIMITS[size], 3) if size in LIMITS else None,
        "tokens": config.patches + 1,
        "by operation": {name: round(count / 1e6, 2) for name, count in saved.most_common()},
    }
    if real:
        row["megabytes a picture at the peak"] = _peak(model, device)
    print(json.dumps(row, indent=1), flush=True)
    return row


def saved_a_picture(model: MaskedImageModel, device: torch.device) -> Counter[str]:
    """Bytes by operation that one more picture makes autograd save, in bfloat16 autocast."""
    # Not from one picture on: a batch of one can be viewed where others have to be copied.
    three, two = (saved_bytes(_loss(model, pictures, device), model) for pictures in (3, 2))
    return Counter({name: three[name] - two[name] for name in three if three[name] != two[name]})


def _loss(model: MaskedImageModel, pictures: int, device: torch.device) -> Tensor:
    """The loss of drawn pictures with the first places masked."""
    config = model.encoder.config
    generator = torch.Generator().manual_seed(0)
    places = min(PLACES, config.patches)
    index = torch.arange(places).repeat(pictures, 1)
    grid = torch.zeros(pictures, config.patches, dtype=torch.bool)
    grid[:, :places] = True
    masks = Masks(grid.view(pictures, *config.grid), index, torch.ones(pictures, places))
    masks = Masks(masks.grid.to(device), masks.index.to(device), masks.weight.to(device))
    images = torch.randn(pictures, 3, *config.image_size, generator=generator).to(device)
    draws = torch.full((pictures, 2 * config.depth), 0.9, device=device)  # nothing is dropped
    targets = torch.zeros(pictures, places, dtype=torch.int64, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        logits = model(images, masks, draws)
        return masked_token_loss(logits, targets, masks.weight)[0]


def _peak(model: MaskedImageModel, device: torch.device) -> float:
    """Megabytes that a picture adds to the peak of forward and backward."""

    def of(pictures: int) -> int:
        model.zero_grad(set_to_none=False)
        taken = memory_of(lambda: torch.autograd.backward(_loss(model, pictures, device)), device)
        return taken.peak or 0

    of(1)  # makes the gradients
    return round((of(16) - of(8)) / 8 / 1e6, 2)
