"""The same segmenter in transformers: the same logits, auxiliary logits, loss and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beit.batch import ImageBatch
from beit.engine.protocol import StepContext
from beit.interop.infer import Hints
from beit.interop.models import model_from_tensors
from beit.interop.names import TRANSFORMERS_5
from beit.interop.segmentation import renames, segmenter_on, split_segmenter
from beit.interop.segmentation_names import TRANSFORMERS_5 as DECODER
from beit.interop.translate import to_ours
from beit.nn.config import EncoderConfig
from beit.nn.counting import count_parameters
from beit.nn.decoder_config import decoder_config
from beit.nn.encoder import Encoder
from beit.nn.segmenter import Segmenter, build_segmenter
from beit.tasks.segment import SegmentTask
from interop.interop_models import (
    BASE,
    CLASSES,
    HEADS,
    PATCH,
    POSITIONS,
    WIDTH,
    Sizes,
    hub_config,
    hub_model,
)

FORWARD, BACKWARD = 1e-5, 1e-4
DEEP: Sizes = {"width": WIDTH, "depth": 6, "heads": HEADS, "patch": PATCH}
LAYERS = (0, 1, 3, 4)  # not the last: transformers cannot read it
SIDE = 48


def segmenting_model(
    positions: str, scaled: bool, *, side: int = SIDE, sizes: Sizes = DEEP, **more: Any
) -> Any:
    """transformers' segmenter, with weights and running statistics that count."""
    settings = {"out_indices": [layer + 2 for layer in LAYERS], "auxiliary_channels": 16}
    model = hub_model(
        "BeitForSemanticSegmentation", positions, scaled, side, sizes, **{**settings, **more}
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.running_mean.normal_(std=0.2, generator=generator)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return model


def read(theirs: Any) -> Segmenter:
    config = theirs.config.to_dict()
    parts = split_segmenter(theirs.state_dict(), "the model")
    assert parts is not None and parts.layout is DECODER and not parts.padding
    size, heads = theirs.config.image_size, theirs.config.num_attention_heads
    encoder = model_from_tensors(parts.encoder, Hints((size, size), heads)).encoder
    return segmenter_on(encoder, parts, config, "the model")[0]


def _loss(logits: Tensor, auxiliary: Tensor) -> Tensor:
    """Of order one, and different for every logit."""
    return sum(
        (torch.linspace(-1, 1, each.numel()).view_as(each) * each).mean() + each.square().mean()
        for each in (logits, auxiliary)
    )  # type: ignore[return-value]


def gradients_differ(own: Segmenter, theirs: nn.Module) -> dict[str, float]:
    """Relative differences of all gradients, theirs translated by the tables of the weights."""
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in theirs.named_parameters()
    }
    rows = renames(DECODER)
    translated = {rows[name]: gradients.pop(name) for name in list(gradients) if name in rows}
    translated |= to_ours(TRANSFORMERS_5, TRANSFORMERS_5.body, gradients, "gradients")
    differences: dict[str, float] = {}
    for name, parameter in own.named_parameters():
        expected = translated[name]
        if parameter.grad is None:
            assert name in own.unread_parameters() and not expected.any()
            continue
        assert expected.any(), name
        difference = (parameter.grad - expected).norm() / expected.norm().clamp_min(1e-12)
        differences[name] = float(difference)
    return differences


def _same(theirs: Any, own: Segmenter, side: int, kind: torch.dtype = torch.float32) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, side, side, generator=generator, dtype=kind)
    seen: list[Tensor] = []
    hook = theirs.auxiliary_head.register_forward_hook(lambda *args: seen.append(args[2]))
    expected = theirs(images).logits
    hook.remove()
    output = own(images)
    assert expected.std() > 0.1 and output.auxiliary is not None and seen[0].std() > 0.1
    torch.testing.assert_close(output.logits, expected, atol=FORWARD, rtol=0)
    torch.testing.assert_close(output.auxiliary, seen[0], atol=FORWARD, rtol=0)
    torch.autograd.backward([_loss(output.logits, output.auxiliary), _loss(expected, seen[0])])
    differences = gradients_differ(own, theirs)
    assert len(differences) > 60
    assert not {name: value for name, value in differences.items() if not value < BACKWARD}


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "LayerScale"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_segmenters_equal_transformers(positions: str, scaled: bool) -> None:
    theirs = segmenting_model(positions, scaled)
    own = read(theirs)
    assert own.config.layers == LAYERS
    _same(theirs, own, SIDE)


def test_they_train_alike_too() -> None:
    """With the statistics of the batch, and these move the running ones alike.

    In double precision, because two pictures' mean of a 1x1 map magnifies what rounding leaves.
    """
    theirs = segmenting_model("per-layer", True).train()
    own = read(theirs).train().double()
    _same(theirs.double(), own, SIDE, torch.float64)
    rows, state = renames(DECODER), own.state_dict()
    for name, value in theirs.state_dict().items():
        if "running" in name or "tracked" in name:
            torch.testing.assert_close(state[rows[name]], value, atol=FORWARD, rtol=0)


def test_the_task_s_loss_is_transformers_loss() -> None:
    theirs = segmenting_model("absolute", False)
    task = SegmentTask(read(theirs)).eval()
    images, index = torch.randn(2, 3, SIDE, SIDE), torch.arange(2)
    target = torch.randint(CLASSES, (2, SIDE, SIDE))
    target[0, :7], target[:, :, 40:] = 255, 255
    batch = ImageBatch(index, index, patch_view=images, target=target.to(torch.uint8))
    with torch.no_grad():
        expected = theirs(images, labels=target).loss
        loss = task(batch, StepContext(0, 0, 1, range(2))).loss
    torch.testing.assert_close(loss, expected, atol=FORWARD, rtol=0)


def test_other_poolings_and_no_auxiliary_head() -> None:
    theirs = segmenting_model("shared", True, pool_scales=[1, 4], use_auxiliary_head=False)
    own = read(theirs)
    assert own.auxiliary is None and own.config.pooling == (1, 4)
    images = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(own(images).logits, theirs(images).logits, atol=FORWARD, rtol=0)


def test_transformers_still_counts_the_embeddings_twice() -> None:
    """Why layer i is their out_indices i + 2; when this fails they mended it."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    theirs = segmenting_model("absolute", False)
    with torch.no_grad():
        for number in range(5, 6):  # no logit depends on the last block, nor can it
            for parameter in theirs.beit.layers[number].parameters():
                parameter.fill_(float("nan"))
    assert theirs(torch.randn(1, 3, SIDE, SIDE)).logits.isfinite().all()
    with pytest.raises(ValueError, match="out_indices"):
        transformers.BeitForSemanticSegmentation(
            hub_config("absolute", False, SIDE, DEEP, out_indices=[2, 3, 5, 7])
        )


def test_as_many_parameters_as_transformers_at_full_size() -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    layers = (1, 3, 5, 9)
    described = hub_config("per-layer", True, 640, BASE, out_indices=[i + 2 for i in layers])
    described.num_labels = 150
    config = EncoderConfig(
        (640, 640),
        (16, 16),
        width=768,
        depth=12,
        heads=12,
        absolute_positions=False,
        relative_positions="per-layer",
        layer_scale=0.1,
    )
    with torch.device("meta"):
        theirs = transformers.BeitForSemanticSegmentation(described)
        own = build_segmenter(Encoder(config), decoder_config("upernet", config, 150))
    assert count_parameters(own) == count_parameters(theirs) == 163_408_748


@pytest.mark.slow
def test_a_segmenter_of_full_size_equals_transformers() -> None:
    theirs = segmenting_model("per-layer", True, side=64, sizes=BASE, out_indices=[3, 5, 7, 11])
    own = read(theirs)
    assert own.config.layers == (1, 3, 5, 9) and own.config.channels == 768
    _same(theirs, own, 64)
