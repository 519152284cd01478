"""What a run starts from: any model that holds an encoder, ours or other people's."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from beit.commands.assembly import saved_models
from beit.commands.assembly.build import encoder_config_of, fresh_weights
from beit.commands.assembly.foreign import head_of
from beit.errors import UserError
from beit.files import atomic_write_text, read_json_object
from beit.interop import timm_models
from beit.interop.foreign import read_foreign
from beit.interop.hub import located
from beit.interop.models import ForeignModel
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import DecoderConfig
from beit.nn.encoder import Encoder
from beit.nn.resize import adapted
from beit.nn.segmenter import Segmenter
from beit.recipes.models import EncoderRecipe
from beit.tokenizer.dvae import DiscreteVAE

NOTHING = "none"
INITIAL = "initial.json"


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
        tokenizer: Fingerprint of the tokenizer whose codes the head predicts, where known.
        folder: Where a model of ours lies; one from the hub, where it was fetched to.
    """

    encoder: Encoder
    head: nn.Module | None
    layout: str = "beit"
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    decoder: DecoderConfig | None = None
    foreign: ForeignModel | None = None
    tokenizer: str = ""
    folder: Path | None = None


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
        return _theirs(read_foreign(spec))
    path = located(spec)
    if not path.exists():
        raise UserError(
            f"there is no {spec}: give a finished run, a model folder or a weight file{otherwise}"
        )
    if path.is_dir() and "kind" in saved_models.read_config(path):
        return replace(_ours(path), folder=path)
    return _theirs(read_foreign(path))


def _theirs(found: ForeignModel) -> Initial:
    told = found.layout, found.labels, found.notes
    if found.segmenter is None:
        return Initial(found.encoder, found.head, *told, foreign=found)
    head, decoder = head_of(found.segmenter), found.segmenter.config
    return Initial(found.encoder, head, *told, decoder=decoder, foreign=found)


def _ours(path: Path) -> Initial:
    model = saved_models.load(path)
    if isinstance(model, DiscreteVAE):
        raise UserError(f"{path} holds a tokenizer; a model with an encoder is wanted")
    if isinstance(model, Segmenter):
        head = head_of(model)
        return Initial(model.encoder, head, labels=model.labels, decoder=model.config)
    if isinstance(model, Classifier):
        return Initial(model.encoder, model.head, labels=model.labels)
    tokenizer = str(saved_models.read_config(path).get("tokenizer", ""))
    if isinstance(model, Encoder):
        return Initial(model, None, tokenizer=tokenizer)
    return Initial(model.encoder, model.head, tokenizer=tokenizer)


@dataclass
class Start:
    """The encoder that a run begins with, and the story of where it is from.

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
        foreign = self.given.foreign
        return {
            "init": _named(self.init),
            "layout": self.given.layout,
            "used": encoder + (head if self.head_kept else []),
            "not_used": [] if self.head_kept else head,
            "left_out": [] if foreign is None else list(foreign.left_out),  # names of the file's
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
        require_same_start(run, self.init)
        atomic_write_text(run / INITIAL, json.dumps(self.record, indent=2) + "\n")


def require_same_start(run: Path, init: str) -> None:
    """See that a run goes on from what it began from.

    Raises:
        UserError: The run there began from something else.
    """
    before, now = began_from(run), _named(init)
    if before not in (None, now):
        raise UserError(
            f"the run in {run} began from {before}, not from {now}; resume with "
            "the same --init or choose another --out"
        )


def began_from(run: Path) -> str | None:
    """What a run began from, "none" for nothing; None while it has not begun."""
    file = run / INITIAL
    if file.is_file():
        return str(read_json_object(file).get("init"))
    return NOTHING if (run / "checkpoints").is_dir() else None


def began_text(run: Path) -> str:
    """What a run began from, as a sentence for its report; empty where nothing says."""
    if not (run / INITIAL).is_file():
        return ""
    began = began_from(run)
    text = "at random" if began == NOTHING else f"as those of {began}"
    return f"The weights began {text}."


def _named(init: str) -> str:
    path = Path(init)
    return str(path.absolute()) if init != NOTHING and path.exists() else init


def start_from(recipe: EncoderRecipe, init: str, seed: int) -> Start:
    """Make the encoder of a fine-tuning.

    Width, depth, heads and patches must be those of the recipe. Departure: how positions are told
    and whether there is LayerScale follow the model that is given and not the recipe's preset,
    unless the recipe says it field by field. A bias table shared by all blocks is copied into each,
    as in the reference; another picture size resizes what depends on it.

    Args:
        recipe: What the encoder is to be.
        init: What `read_initial` understands, or "none" for freshly drawn weights.
        seed: Of the fresh weights.

    Raises:
        UserError: There is nothing to read, or it is of another shape.
    """
    if init == NOTHING:
        with fresh_weights(seed):
            start = Start(Encoder(_tables_apart(encoder_config_of(recipe))))
    else:
        start = _read_start(recipe, init, _tables_apart)
    # Nothing is masked in fine-tuning: what stands in for masked patches is not trained.
    start.encoder.embeddings.mask_embedding.requires_grad_(False)
    return start


def go_on_from(recipe: EncoderRecipe, init: str) -> Start:
    """Make the encoder of a continued pre-training.

    As for a fine-tuning, but a bias table that all blocks share stays shared, and what stands in
    for masked patches goes on being trained.

    Args:
        recipe: What the encoder is to be.
        init: What `read_initial` understands.

    Raises:
        UserError: There is nothing to read, or it is of another shape.
    """
    return _read_start(recipe, init, lambda config: config)


def _read_start(
    recipe: EncoderRecipe, init: str, asked: Callable[[EncoderConfig], EncoderConfig]
) -> Start:
    if not init.strip():
        raise UserError(f"--init is empty: give a model, or `--init {NOTHING}` for none")
    given = read_initial(init, f", or `--init {NOTHING}` to train from scratch")
    wanted = asked(_following(given.encoder.config, recipe, init))
    encoder, notes = adapted(given.encoder, wanted)
    return Start(encoder, init, given, (*given.notes, *notes))


def _following(theirs: EncoderConfig, recipe: EncoderRecipe, init: str) -> EncoderConfig:
    """The recipe's configuration with the given model's positions and LayerScale."""
    config = encoder_config_of(recipe)
    for name in ("width", "depth", "heads", "patch_size"):
        if getattr(theirs, name) != getattr(config, name):
            raise UserError(
                f"{init} does not fit the recipe: its {name} is {getattr(theirs, name)}, not "
                f"{getattr(config, name)}; name the recipe of its size, or set --encoder.{name}"
            )
    names = ("absolute_positions", "relative_positions", "layer_scale", "mlp_ratio", "channels")
    follow: dict[str, Any] = {name: getattr(theirs, name) for name in names}
    stated = {name: value for name, value in recipe.explicit.items() if name in follow}
    return replace(config, **{**follow, **stated})


def _tables_apart(config: EncoderConfig) -> EncoderConfig:
    """A bias table a block where all would share one, as the reference fine-tunes."""
    if config.relative_positions != "shared":
        return config
    return replace(config, relative_positions="per-layer")
