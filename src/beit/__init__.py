"""BEiT: BERT pre-training of image Transformers (arXiv:2106.08254).

    import beit

    beit.pretrain("tiny", data="photos/", out="runs/photos")
    model = beit.load("runs/photos")            # a MaskedImageModel
    tokens = model.encoder(images).tokens       # (B, 1 + N, D)

Names are loaded when they are first used, so that `import beit` and `beit --help` cost nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beit.api import (
        classify,
        encoder,
        evaluate,
        load,
        pictures,
        plan,
        predict,
        pretrain,
        probe,
        push,
        recipe,
        segment,
        train_tokenizer,
        write_report,
    )

__version__ = "0.1.0"
__all__ = [
    "classify",
    "encoder",
    "evaluate",
    "load",
    "pictures",
    "plan",
    "predict",
    "pretrain",
    "probe",
    "push",
    "recipe",
    "segment",
    "train_tokenizer",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name not in __all__:
        raise AttributeError(f"module 'beit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("beit.api"), name)
