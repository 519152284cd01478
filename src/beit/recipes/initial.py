"""What a run starts from: any model that holds an encoder, ours or other people's."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit.errors import UserError
from beit.files import atomic_write_text
from beit.interop import hub, timm_models
from beit.interop.models import ForeignModel
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import DecoderConfig
from beit.nn.encoder import Encoder
from beit.nn.resize import adapted
from beit.nn.segmenter import Segmenter
from beit.recipes import saved_models
from beit.recipes.build import INITIALISATION_STREAM, encoder_config_of
from beit.recipes.foreign import head_of
from beit.recipes.models import EncoderRecipe

NOTHING = "none"


@dataclass(frozen=True)
class Initial:
    """An encoder with its head, and where both are from.

    Attributes:
        encoder: The part every task shares.
        head: What stood on top of it, if anything.
        layout: Whose names the file used; "beit" for ours.
        labels: The classes of a classifier or segmenter, where known.
        decoder: What a segmenter's head is made of.
        notes: What was assumed or left out on the way.
        foreign: All that was read of other people's files.
    """

    encoder: Encoder
    head: nn.Module | None
    layout: str = "beit"
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    decoder: DecoderConfig | None = None
    foreign: ForeignModel | None = None


def read_initial(spec: str | Path, otherwise: str = "") -> Initial:
    """Read a model to start from.

    Args:
        spec: A run or model folder of ours, a transformers folder, a `.pth`, `.pt` or
            `.safetensors` file, `timm:NAME`, or `hf://owner/name`.
        otherwise: What else the user could give, for the sentence that there is nothing.

    Raises:
        UserError: There is nothing there, or nothing with an encoder in it.
    """
    if str(spec).startswith(timm_models.PREFIX):
        return _theirs(timm_models.read_timm(spec))
    path = hub.fetch(str(spec)) if str(spec).startswith(hub.PREFIX) else Path(spec)
    if not path.exists():
        raise UserError(
            f"there is no {spec}: give a finished run, a model folder or a weight file{otherwise}"
        )
    if path.is_dir() and "kind" in saved_models.read_config(path):
        return _ours(path)
    return _theirs(timm_models.read_timm(path))


def _theirs(found: ForeignModel) -> Initial:
    told = found.layout, found.labels, found.notes
    if found.segmenter is None:
        return Initial(found.encoder, found.head, *told, foreign=found)
    head, decoder = head_of(found.segmenter), found.segmenter.config
    return Initial(found.encoder, head, *told, decoder=decoder, foreign=found)


def _ours(path: Path) -> Initial:
    model = saved_models.load(path)
    if isinstance(model, Segmenter):
        head = head_of(model)
        return Initial(model.encoder, head, labels=model.labels, decoder=model.config)
    if isinstance(model, Classifier):
        return Initial(model.encoder, model.head, labels=model.labels)
    return Initial(*saved_models.load_encoder_and_head(path))


@dataclass
class Start:
    """The encoder that a fine-tuning begins with, and the story of where it is from.

    Attributes:
        encoder: Of the shape that the recipe asks for.
        init: What was asked for.
        given: What it was made from; None from scratch.
        notes: What was changed on the way.
        head_kept: Whether the task goes on with the head that was given, too.
    """

    encoder: Encoder
    init: str = NOTHING
    given: Initial | None = None
    notes: tuple[str, ...] = ()
    head_kept: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """Which weights were used and which not, as plain data for the run folder."""
        if self.given is None:
            return {"init": NOTHING}
        encoder = [f"encoder.{name}" for name in self.encoder.state_dict()]
        head = [] if self.given.head is None else list(self.given.head.state_dict())
        head = [f"head.{name}" for name in head]
        path = Path(self.init)
        return {
            "init": str(path.absolute()) if path.exists() else self.init,
            "layout": self.given.layout,
            "used": encoder + (head if self.head_kept else []),
            "not_used": [] if self.head_kept else head,
            "notes": list(self.notes),
        }

    @property
    def sentence(self) -> str:
        """The record in one line."""
        if self.given is None:
            return "starting from scratch"
        record = self.record
        left = f"; not used: {len(record['not_used'])} of its head" if record["not_used"] else ""
        changes = "".join(f"; {note}" for note in self.notes)
        return f"starting from {self.init}: {len(record['used'])} weights used{left}{changes}"

    def keep(self, run: Path) -> None:
        """Write the record into a run folder.

        Raises:
            UserError: The run there began from something else.
        """
        file = run / "initial.json"
        record = self.record
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8")).get("init")
            if before != record["init"]:
                raise UserError(
                    f"the run in {run} began from {before}, not from {record['init']}; resume with "
                    "the same --init or choose another --out"
                )
        atomic_write_text(file, json.dumps(record, indent=2) + "\n")


def start_from(recipe: EncoderRecipe, init: str, seed: int) -> Start:
    """Make the encoder of a fine-tuning.

    Width, depth, heads and patches must be those of the recipe; how positions are told and whether
    there is LayerScale follow the model that is given, unless the recipe says it field by field. A
    bias table shared by all blocks is copied into each, as in the reference; another picture size
    resizes what depends on it.

    Args:
        recipe: What the encoder is to be.
        init: What `read_initial` understands, or "none" for freshly drawn weights.
        seed: Of the fresh weights.

    Raises:
        UserError: There is nothing to read, or it is of another shape.
    """
    config = encoder_config_of(recipe)
    if config.relative_positions == "shared":
        config = replace(config, relative_positions="per-layer")
    if init == NOTHING:
        torch.manual_seed(seed + INITIALISATION_STREAM)
        encoder = Encoder(config)
        return Start(_without_mask(encoder))
    if not init.strip():
        raise UserError(f"--init is empty: give a model, or `--init {NOTHING}` for none")
    given = read_initial(init, f", or `--init {NOTHING}` to train from scratch")
    wanted = _following(given.encoder.config, config, recipe, init)
    encoder, notes = adapted(given.encoder, wanted)
    return Start(_without_mask(encoder), init, given, (*given.notes, *notes))


def _following(
    theirs: EncoderConfig, config: EncoderConfig, recipe: EncoderRecipe, init: str
) -> EncoderConfig:
    """The recipe's configuration with the given model's positions and LayerScale."""
    for name in ("width", "depth", "heads", "patch_size"):
        if getattr(theirs, name) != getattr(config, name):
            raise UserError(
                f"{init} does not fit the recipe: its {name} is {getattr(theirs, name)}, not "
                f"{getattr(config, name)}; name the recipe of its size, or set --encoder.{name}"
            )
    positions = theirs.relative_positions
    follow: dict[str, Any] = {
        "absolute_positions": theirs.absolute_positions,
        "relative_positions": "per-layer" if positions == "shared" else positions,
        "layer_scale": theirs.layer_scale,
        "mlp_ratio": theirs.mlp_ratio,
        "channels": theirs.channels,
    }
    stated = {name: value for name, value in recipe.explicit.items() if name in follow}
    if stated.get("relative_positions") == "shared":
        stated["relative_positions"] = "per-layer"
    return replace(config, **{**follow, **stated})


def _without_mask(encoder: Encoder) -> Encoder:
    """Nothing is masked in fine-tuning: what stands in for masked patches is not trained."""
    encoder.embeddings.mask_embedding.requires_grad_(False)
    return encoder
