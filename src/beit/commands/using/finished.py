"""Reading a model that is to be used: a classifier or a segmenter, ours or converted."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit.commands.assembly import saved_models
from beit.commands.assembly.foreign import facts_of, whole
from beit.commands.assembly.initial import read_initial
from beit.commands.assembly.saved_models import Model
from beit.commands.assembly.tokenizers import load_tokenizer
from beit.data.views.views import ViewSettings
from beit.engine.distribution import current_world
from beit.errors import UserError
from beit.interop.dalle import is_dalle
from beit.interop.hub import located
from beit.interop.told import segmenting_told
from beit.nn.classifier import Classifier
from beit.nn.encoder import Encoder
from beit.nn.segmenter import Segmenter
from beit.tokenizer.dvae import DiscreteVAE

Usable = Classifier | Segmenter
_WHOLE_FROM = 384  # pixels


@dataclass(frozen=True)
class Finished:
    """A model with what its folder says of it."""

    model: Usable
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def views(self) -> ViewSettings:
        """How a picture is cut for it."""
        return views_of(self.model, self.facts.get("view", {}))


def views_of(model: Model, view: Mapping[str, Any]) -> ViewSettings:
    """How a picture is cut for a model without chance.

    Args:
        model: Of any kind.
        view: What its files say of that; only classifiers have seen less than the largest crop.

    Raises:
        UserError: That is impossible.
    """
    if isinstance(model, DiscreteVAE):
        return ViewSettings(token_view=model.image_size, random=False)
    encoder = model if isinstance(model, Encoder) else model.encoder
    size = encoder.config.image_size
    share = _share(view, usual_share(size)) if isinstance(model, Classifier) else 1.0
    return ViewSettings(patch_view=size, random=False, centre_share=share)


def _share(view: object, usual: float) -> float:
    share: Any = view.get("centre_share", usual) if isinstance(view, Mapping) else view
    if type(share) not in (int, float):
        raise UserError(
            f"the classifier's config.json says that pictures are cut by {share!r}: its view's "
            "centre_share must be a number in (0, 1]"
        )
    return float(share)


def load(path: str | Path) -> Model:
    """Load a model: a folder of ours, other people's weights, or `hf://owner/name`.

    Args:
        path: A run or model folder, a folder of transformers or of timm, a weight file (`.pth`,
            `.pt`, `.safetensors`), `timm:NAME`, DALL-E's `encoder.pkl` under any name, or a
            repository of the hub, with `@revision` where not the newest is wanted. From the hub
            only safetensors, JSON and Markdown are fetched.

    Returns:
        A tokenizer, a pre-trained model, a classifier, a segmenter or an encoder; in evaluation
        mode, on the CPU. What was assumed of other people's models is told on standard error.

    Raises:
        UserError: There is no such model, or its files are not one.
    """
    return read_whole(located(path))[0]


def read_whole(path: Path) -> tuple[Model, Mapping[str, Any]]:
    """Read a model, ours or other people's, with what its files say of it; doubts are printed.

    Args:
        path: Where it lies, see `located`; or `timm:NAME`.

    Raises:
        UserError: There is no model.
    """
    if is_dalle(path):
        return load_tokenizer(path), {}
    if path.is_dir() and "kind" in (facts := saved_models.read_config(path)):
        model = saved_models.load(path)
        if isinstance(model, Segmenter):
            facts |= segmenting_told(facts, str(path / "config.json"))
        return model, facts
    found = read_initial(path).foreign
    assert found is not None  # ours was read above
    for note in found.notes if current_world().main else ():
        print(f"note: {note}", file=sys.stderr, flush=True)
    return whole(found), facts_of(found)


def usual_share(size: tuple[int, int]) -> float:
    """Of the sides, that the crop for evaluation keeps where nobody says: as in the reference.

    Args:
        size: (height, width) of the model's pictures, in pixels.
    """
    return 1.0 if min(size) >= _WHOLE_FROM else 224 / 256


def read_finished(spec: str | Path) -> Finished:
    """Read a model that predicts something people can read.

    Args:
        spec: A run of `beit classify` or `beit segment` (or its `best`), a model folder, or other
            people's weights with a classifier.

    Raises:
        UserError: It holds no such model.
    """
    return finished_of(*read_whole(located(spec)), spec)


def finished_of(model: Model, facts: Mapping[str, Any], spec: str | Path) -> Finished:
    """A model as one that predicts something people can read.

    Args:
        model: Of any kind.
        facts: What its files say of it.
        spec: What it was asked for by, for complaints.

    Raises:
        UserError: It is no such model.
    """
    if isinstance(model, (Classifier, Segmenter)):
        return Finished(model, facts)
    if isinstance(model, DiscreteVAE):
        raise UserError(
            f"{spec} holds a tokenizer, which knows no classes; its figures are in its run's "
            f"result.json and in what `beit report` writes: give a classifier or a segmenter"
        )
    if "kind" not in facts:
        raise UserError(f"{spec} has no classifier; fine-tune it first: beit classify ... --init")
    raise UserError(
        f"{spec} holds {saved_models.what(model)}, which predicts no classes; fine-tune it "
        f"first: beit classify (or segment) RECIPE --init {spec} ..."
    )
