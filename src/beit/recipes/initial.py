"""What a run starts from: any model that holds an encoder, ours or other people's."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from beit.errors import UserError
from beit.interop.models import read_model
from beit.nn.encoder import Encoder
from beit.recipes import saved_models

NOTHING = "none"


@dataclass(frozen=True)
class Initial:
    """An encoder with its head, and where both are from.

    Attributes:
        encoder: The part every task shares.
        head: What stood on top of it, if anything.
        layout: Whose names the file used; "beit" for ours.
        labels: The classes of a classifier or segmenter, where known.
        notes: What was assumed or left out on the way.
    """

    encoder: Encoder
    head: nn.Module | None
    layout: str = "beit"
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_initial(spec: str | Path) -> Initial:
    """Read a model to start from.

    Args:
        spec: A run or model folder of ours, a transformers folder, or a `.pth`, `.pt` or
            `.safetensors` file.

    Raises:
        UserError: There is nothing there, or nothing with an encoder in it.
    """
    path = Path(spec)
    if not path.exists():
        raise UserError(
            f"there is no {spec} to start from; give a finished run, a model folder or a weight "
            f"file, or `--init {NOTHING}` to train from scratch"
        )
    if path.is_dir() and "kind" in saved_models.read_config(path):
        encoder, head = saved_models.load_encoder_and_head(path)
        labels = tuple(saved_models.read_config(path).get("labels", ()))
        return Initial(encoder, head, labels=labels)
    model = read_model(path)
    return Initial(model.encoder, model.head, model.layout, model.labels, model.notes)
