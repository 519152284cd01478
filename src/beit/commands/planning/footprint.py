"""What a run takes up: memory of a device, and room on the disk."""

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from beit.batch import IGNORED
from beit.commands.assembly.build import (
    Precision,
    encoder_config_of,
    mask_plan,
    pretrain_task,
    tokenizer_config,
)
from beit.commands.planning.counting import outputs_of
from beit.commands.planning.machines import Machine
from beit.commands.planning.planned import (
    Planned,
    fresh_classifier,
    fresh_segmenter,
    fresh_task,
    has_tokens,
)
from beit.commands.preparing.banking import views_needed
from beit.data.decoding.decode import BadPicture
from beit.data.pack import PackSettings, encoded
from beit.data.sources.opening import HasBytes, Source
from beit.engine.state import expected_size
from beit.nn.counting import count_activations, count_parameters
from beit.nn.saved_bytes import saved_bytes
from beit.objectives.pixels import pixel_cross_entropy
from beit.recipes.downstream_models import ClassifyRecipe, SegmentRecipe
from beit.recipes.models import PretrainRecipe
from beit.tasks.segment import SegmentTask
from beit.tokenizer.bank import codes_size
from beit.tokenizer.counting import count_working_memory
from beit.tokenizer.dvae import DiscreteVAE

STATE = 16  # bytes a parameter: weight, gradient and AdamW's two averages, float32 each
_SAMPLED = 32  # pictures that are packed to see how large they become
_TAR_BLOCK = 512


def memory(
    recipe: Planned, machine: Machine, precision: Precision, devices: int, classes: int
) -> dict[str, Any]:
    """Bytes of a device, what they are of, and the micro-batches that fit.

    Activations are counted for the live tokenizer's run; with a bank its part falls away.
    """
    half = precision == "bfloat16"
    config = encoder_config_of(recipe.encoder)
    model = _model(recipe, classes)
    parameters = count_parameters(model)
    if isinstance(recipe, PretrainRecipe):
        places, outputs = mask_plan(recipe).capacity, outputs_of(recipe)
        a_picture = count_activations(config, places, outputs, half=half)
    elif isinstance(recipe, SegmentRecipe):
        a_picture = kept_for_segmenting(recipe, classes, half=half)
    else:
        a_picture = count_activations(config, None, classes, half=half)
    weights, working = _tokenizer(recipe)
    fixed = {
        "state": STATE * parameters,
        "average": 4 * parameters if recipe.optim.ema is not None else 0,
        "half_weights": 2 * parameters if half else 0,
        "tokenizer": weights,
    }
    micro = recipe.optim.batch // (devices * recipe.optim.accumulate)
    total = sum(fixed.values()) + micro * max(a_picture, working)
    found = {
        **fixed,
        "activations_per_picture": a_picture,
        "micro_batch": micro,
        "activations": micro * a_picture,
        "tokenizer_working": micro * working,  # given back before there are activations
        "total": total,
        "available": machine.memory,
    }
    if machine.memory is None:
        return found
    room = machine.memory - sum(fixed.values())
    largest = max(0, int(room // max(a_picture, working)))
    return {**found, "fits": total <= machine.memory, **_cut(recipe, devices, largest)}


def _cut(recipe: Planned, devices: int, largest: int) -> dict[str, int | None]:
    """The fewest micro-batches that fit and keep the batch."""
    whole, least, divisor = recipe.optim.batch // devices, 1, 1
    if isinstance(recipe, ClassifyRecipe) and (recipe.mixing.mixup or recipe.mixing.cutmix):
        divisor = 2  # pictures are mixed in pairs
    if isinstance(recipe, SegmentRecipe) and recipe.decoder.norm == "batch" and devices == 1:
        least = 2  # batch norm learns nothing from one picture
    cuts = ((parts, whole // parts) for parts in range(1, whole + 1) if whole % parts == 0)
    ways = (n for n, micro in cuts if least <= micro <= largest and micro % divisor == 0)
    return {"largest_micro_batch": largest, "accumulate": next(ways, None)}


def _model(recipe: Planned, classes: int) -> nn.Module:
    with torch.device("meta"):
        if isinstance(recipe, PretrainRecipe):
            vae = DiscreteVAE(tokenizer_config(recipe.tokenizer.model))
            return pretrain_task(recipe, vae).model
        if isinstance(recipe, SegmentRecipe):
            return fresh_segmenter(recipe, classes)
        return fresh_classifier(recipe, classes)


def kept_for_segmenting(recipe: SegmentRecipe, classes: int, *, half: bool) -> int:
    """Bytes a picture that the forward pass of a segmenter keeps for the backward pass.

    Read from a graph whose tensors have sizes and no numbers: decoders are too varied for a sum.
    """
    with torch.device("meta"):  # weights that are drawn have numbers
        task = fresh_task(recipe, None, classes).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        task = task.to_empty(device="cpu")
        # Not from one picture on: a batch of one can be viewed where others have to be copied.
        two, three = (_kept(task, recipe, n, classes, half=half).total() for n in (2, 3))
    return three - two


def _kept(
    task: nn.Module, recipe: SegmentRecipe, pictures: int, classes: int, *, half: bool
) -> Counter[str]:
    height, width = recipe.encoder.image_size
    images = torch.rand(pictures, 3, height, width)
    target = torch.randint(0, classes, (pictures, height, width))
    assert isinstance(task, SegmentTask)
    model = task.model
    paths = torch.full((pictures, 2 * model.encoder.config.depth), 0.9)  # nothing is dropped
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = model(images, paths, torch.rand(pictures, model.channel_draws))
        heads = (output.logits, output.auxiliary)
        losses = [pixel_cross_entropy(h, target, IGNORED)[0] for h in heads if h is not None]
        return saved_bytes(torch.stack(losses).sum(), model)


def _tokenizer(recipe: Planned) -> tuple[int, int]:
    """Bytes of the frozen tokenizer, and of what it needs a picture while it reads codes."""
    if not isinstance(recipe, PretrainRecipe) or not has_tokens(recipe):
        return 0, 0
    config = tokenizer_config(recipe.tokenizer.model)
    half = recipe.tokens.precision != "float32"
    with torch.device("meta"):
        vae = DiscreteVAE(config)
    weights = 4 * sum(p.numel() for p in vae.parameters())
    if half:
        weights += 2 * sum(p.numel() for p in vae.encoder.parameters())
    return weights, count_working_memory(config, encoder_config_of(recipe.encoder).grid, half=half)


def disk(recipe: Planned, pictures: int, classes: int) -> dict[str, Any]:
    """Bytes of what a run leaves: checkpoints, and the bank where it has a use."""
    size = expected_size(_model(recipe, classes), recipe.optim.ema is not None)
    kept = recipe.engine.keep
    found: dict[str, Any] = {
        "checkpoint": size,
        "checkpoints_kept": kept,
        "checkpoints": (kept + 1) * size,  # a new one is whole before the oldest goes
    }
    if isinstance(recipe, PretrainRecipe) and has_tokens(recipe):
        views = views_needed(recipe, pictures)
        grid = encoder_config_of(recipe.encoder).grid
        found |= {"bank": codes_size(views, pictures, grid), "bank_views": views}
    return found


def packed_size(sources: tuple[Source, ...]) -> dict[str, Any]:
    """Bytes of a packed set of these pictures, by packing some of them in memory."""
    total = sum(map(len, sources))
    sizes = []
    for source in sources:
        step = max(1, len(source) // max(1, _SAMPLED * len(source) // total))
        for index in range(0, len(source), step):
            try:
                image = source.read(index)
                data = source.read_bytes(index) if isinstance(source, HasBytes) else b""
                size = len(encoded(image, data, PackSettings()))
            except BadPicture:  # too long for a JPEG, too: packing leaves them out
                continue
            sizes.append(_TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK)
    if not sizes:
        return {}
    each = sum(sizes) / len(sizes)
    return {"packed": round(each * total), "packed_sample": len(sizes)}
