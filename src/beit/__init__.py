"""BEiT: BERT pre-training of image Transformers (arXiv:2106.08254).

    import beit

    beit.pretrain("tiny", data="photos/", out="runs/photos")
    model = beit.load("runs/photos")            # a MaskedImageModel
    images = beit.inputs(model, "photos/")      # (B, 3, H, W), as the model takes them
    tokens = model.encoder(images).tokens       # (B, 1 + N, D)

Names are loaded when they are first used, so that `import beit` and `beit --help` cost nothing.
"""

from typing import TYPE_CHECKING, Any

from beit.version import VERSION

if TYPE_CHECKING:
    from beit.api import (
        bank,
        classify,
        compare,
        convert,
        encoder,
        evaluate,
        inputs,
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

__version__ = VERSION
__all__ = [
    "bank",
    "classify",
    "compare",
    "convert",
    "encoder",
    "evaluate",
    "inputs",
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
    """Load a public name, or a part of the package."""
    from importlib import import_module
    from importlib.util import find_spec

    if name in __all__:
        return getattr(import_module("beit.api"), name)
    if name.startswith("_") or find_spec(f"beit.{name}") is None:
        raise AttributeError(f"module 'beit' has no attribute {name!r}")
    return import_module(f"beit.{name}")


def __dir__() -> list[str]:
    """The public names, loaded or not: what a notebook completes."""
    return sorted({*globals(), *__all__})
