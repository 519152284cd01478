"""Reading a model that is to be used: a classifier or a segmenter, ours or converted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit.data.views import ViewSettings
from beit.errors import UserError
from beit.interop import hub
from beit.nn.classifier import Classifier
from beit.nn.segmenter import Segmenter
from beit.recipes import saved_models
from beit.recipes.foreign import facts_of, whole
from beit.recipes.initial import read_initial
from beit.tokenizer.dvae import DiscreteVAE

Usable = Classifier | Segmenter
USUAL_SHARE = 224 / 256  # that the crop for evaluation keeps where nobody says


@dataclass(frozen=True)
class Finished:
    """A model with what its folder says of it."""

    model: Usable
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def views(self) -> ViewSettings:
        """How a picture is cut for it."""
        share = float(self.facts.get("view", {}).get("centre_share", USUAL_SHARE))
        size = self.model.encoder.config.image_size
        return ViewSettings(patch_view=size, random=False, centre_share=share)


def read_finished(spec: str | Path) -> Finished:
    """Read a model that predicts something people can read.

    Args:
        spec: A run of `beit classify` or `beit segment` (or its `best`), a model folder, or other
            people's weights with a classifier.

    Raises:
        UserError: It holds no such model.
    """
    path = hub.fetch(str(spec)) if str(spec).startswith(hub.PREFIX) else Path(spec)
    if path.is_dir() and "kind" in (facts := saved_models.read_config(path)):
        model = saved_models.load(path)
        if isinstance(model, (Classifier, Segmenter)):
            return Finished(model, facts)
        if isinstance(model, DiscreteVAE):
            raise UserError(
                f"{spec} holds a tokenizer, which knows no classes; its figures are in its run's "
                f"result.json and in what `beit report` writes: give a classifier or a segmenter"
            )
        raise UserError(
            f"{spec} holds {saved_models.what(model)}, which predicts no classes; fine-tune it "
            f"first: beit classify (or segment) RECIPE --init {spec} ..."
        )
    found = read_initial(spec).foreign
    theirs = None if found is None else whole(found)
    if found is None or not isinstance(theirs, (Classifier, Segmenter)):
        raise UserError(f"{spec} has no classifier; fine-tune it first: beit classify ... --init")
    return Finished(theirs, facts_of(found))
