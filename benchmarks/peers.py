"""Other people's training steps on our weights and our batch, each as its users run it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from beit.interop.export import hub_config
from beit.interop.names import REFERENCE, TIMM, TRANSFORMERS_5, Layout
from beit.interop.translate import to_theirs
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.masked_image_model import MaskedImageModel
from reference_model import ReferenceModel

Loss = Callable[[], Tensor]
Model = MaskedImageModel | Classifier


def translated(
    layout: Layout, kind: str, config: EncoderConfig, ours: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our tensors, weights or their gradients, under a layout's names."""
    kernel = (config.channels, *config.patch_size)
    return to_theirs(layout.body | layout.heads[kind], dict(ours), kernel)


def reference_masked(model: MaskedImageModel, config: EncoderConfig) -> ReferenceModel:
    """The reference's model with our weights."""
    theirs = ReferenceModel(config, model.head.output.out_features)
    _load(theirs, translated(REFERENCE, "tokens", config, model.state_dict()))
    return theirs


def hub_masked(model: MaskedImageModel, config: EncoderConfig) -> nn.Module:
    """Transformers' BeitForMaskedImageModeling with our weights."""
    import transformers

    described = hub_config(config, model.head, "tokens", ())
    described.pop("model_type")
    theirs = transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**described))
    _load(theirs, translated(TRANSFORMERS_5, "tokens", config, model.state_dict()))
    trained: nn.Module = theirs.train()
    return trained


def timm_classifier(model: Classifier, config: EncoderConfig) -> nn.Module:
    """Timm's BEiT, a classifier with a bias table in every block, with our weights."""
    import timm

    theirs = timm.create_model(
        "beit_base_patch16_224",
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        init_values=config.layer_scale,
        use_abs_pos_emb=config.absolute_positions,
        use_rel_pos_bias=config.relative_positions == "per-layer",
        num_classes=model.classes,
        global_pool="avg",
    )
    tensors = translated(TIMM, "mean", config, model.state_dict())
    tensors.pop("mask_token")  # timm's classifiers have no use for it
    _load(theirs, tensors)
    trained: nn.Module = theirs.train()
    return trained


def _load(theirs: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load strictly, but for their index buffers."""
    left = theirs.load_state_dict(tensors, strict=False)
    missing = [name for name in left.missing_keys if not name.endswith("position_index")]
    assert not missing and not left.unexpected_keys, (missing, left.unexpected_keys)


def trainer_step(
    model: nn.Module, loss: Loss, *, precision: str, clip: float = 1.0
) -> Callable[[], None]:
    """A training loop's step as one finds it: autocast, fused AdamW, clipping, the loss read."""
    device = next(model.parameters()).device.type
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=True)

    def once() -> None:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        value.item()

    return once


def hub_loss(model: nn.Module, images: Tensor, masked: Tensor, labels: Tensor) -> Loss:
    """Transformers' loss: the head on all places, then boolean indexing."""
    return lambda: model(images, bool_masked_pos=masked, labels=labels).loss


def reference_loss(model: ReferenceModel, images: Tensor, masked: Tensor, labels: Tensor) -> Loss:
    """The reference's loss, tokens given."""
    return lambda: functional.cross_entropy(model(images, masked), labels)


def timm_loss(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Loss:
    """Cross-entropy with label smoothing, as ours."""
    return lambda: functional.cross_entropy(model(images).float(), labels, label_smoothing=0.1)


def difference(
    ours: tuple[nn.Module, Loss],
    theirs: tuple[nn.Module, Loss],
    names: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    *,
    tolerance: float = 2e-4,
    loss_tolerance: float = 1e-4,
) -> dict[str, float]:
    """Compare losses and gradients, by default in float32, and assert that they are equal.

    Args:
        ours: Our model and its loss.
        theirs: Likewise.
        names: Our gradients under their names.
        tolerance: On the norm of the gradients' difference, relative to their norm.
        loss_tolerance: On the losses' difference, relative to ours.
    """
    losses, gradients = [], []
    for model, loss in (ours, theirs):
        model.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(float(value.detach()))
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
        model.zero_grad()
    own = names(gradients[0])
    assert set(own) == set(gradients[1]), set(own) ^ set(gradients[1])
    apart = sum((own[name] - gradients[1][name]).square().sum() for name in own)
    norm = sum(value.square().sum() for value in own.values())
    relative = float((apart / norm).sqrt())  # type: ignore[union-attr]
    assert abs(losses[0] - losses[1]) < loss_tolerance * abs(losses[0]), losses
    assert relative < tolerance, relative
    return {"loss": losses[0] - losses[1], "gradient, relative": relative}


def difference_in_half(model: nn.Module, loss: Loss, device: torch.device) -> dict[str, float]:
    """Compare a model under bfloat16 autocast with itself in float32; assert that it is close.

    Steps are timed under autocast, where kernels compute that float32 never asks. A wrong one gives
    another gradient; rounding gives one that is near.
    """

    def in_half() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return loss()

    half = model, in_half
    return difference((model, loss), half, dict, tolerance=3e-2, loss_tolerance=1e-2)
