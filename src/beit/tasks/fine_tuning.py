"""What fine-tuning tasks share: which parameters do not decay, and rates that fall by layer."""

from collections.abc import Mapping

from beit.engine.protocol import Cutting
from beit.nn.encoder import Encoder

PREFIX = "model.encoder."  # where a task's encoder stands


def undecayed(encoder: Encoder) -> frozenset[str]:
    """Names in the task of positions and [S], which do not decay."""
    return frozenset(f"{PREFIX}{name}" for name in encoder.undecayed_parameters())


def layer_decay_scales(encoder: Encoder, decay: float) -> Mapping[str, float]:
    """Layer-wise rate decay: rate x decay^(L + 1 - depth); what is on top keeps its rate whole."""
    top, depths = encoder.config.depth + 1, encoder.layer_ids()
    return {
        f"{PREFIX}{name}": decay ** (top - depths[name])
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad
    }


def dropout_cutting(encoder: Encoder, multiple: int = 1) -> Cutting:
    """Stochastic depth is drawn by picture, but an MLP's dropout by micro-batch."""
    changes = "dropout then draws other numbers" if encoder.config.dropout else ""
    return Cutting(multiple, changes)
