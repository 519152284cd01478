"""What a notebook needs: the same things that the command line does, as functions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from beit.commands.assembly.stage import RunRequest
from beit.commands.looking.comparing import compare
from beit.commands.looking.reporting import write_report
from beit.commands.planning.planning import PlanRequest
from beit.commands.planning.planning import plan as _plan
from beit.commands.preparing.banking import make_bank
from beit.commands.sharing.conversion import Format, Options
from beit.commands.sharing.conversion import convert as _convert
from beit.commands.sharing.graphs import DIGITS
from beit.commands.sharing.publishing import push
from beit.commands.training.classify import classify as _classify
from beit.commands.training.pretrain import pretrain as _pretrain
from beit.commands.training.segment import segment as _segment
from beit.commands.training.tokenizer import train_tokenizer as _train_tokenizer
from beit.commands.using.evaluating import evaluate
from beit.commands.using.finished import load
from beit.commands.using.inputs import inputs
from beit.commands.using.predicting import Wishes
from beit.commands.using.predicting import predict as _predict
from beit.commands.using.probing import probe
from beit.data.sources.handed import pictures
from beit.data.sources.opening import GivenData, as_data
from beit.engine.protocol import Hooks
from beit.nn.encoder import Encoder
from beit.nn.presets import PresetName, SizeName, encoder_config
from beit.recipes.catalogue import (
    Task,
    recipe,
    recipe_named,
    wanted_recipe,
    wanted_tokenizer_recipe,
)
from beit.recipes.downstream_models import ClassifyRecipe, SegmentRecipe
from beit.recipes.models import PretrainRecipe, TokenizerRecipe
from beit.recipes.overrides import replace
from beit.tokenizer.protocol import Tokenizer

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

OnRow = Callable[[dict[str, Any]], object]
AfterStep = Callable[[nn.Module, int], object]
MakeOptimiser = Callable[[list[dict[str, Any]]], Optimizer]


def encoder(
    size: SizeName = "base",
    preset: PresetName = "paper",
    image_size: int | tuple[int, int] = 224,
    patch_size: int | tuple[int, int] = 16,
    **explicit: Any,
) -> Encoder:
    """A freshly initialised encoder: (B, 3, H, W) normalised floats to (B, 1 + N, D) tokens.

    The final LayerNorm belongs to the heads. Normalisation is ImageNet's
    (`beit.pixels.normalise`). For a pre-trained encoder take `load(path).encoder`.

    Args:
        size: Width, depth and heads, by the name of a recipe.
        preset: "paper" or "plus": how positions are known, LayerScale.
        image_size: Pixels, or (height, width).
        patch_size: Likewise.
        explicit: Any other field of `beit.nn.encoder.EncoderConfig`, such as depth=6.

    Raises:
        UserError: An unknown name or an impossible value.
    """
    sides = ((s, s) if isinstance(s, int) else s for s in (image_size, patch_size))
    return Encoder(encoder_config(size, preset, *sides, **explicit))


def train_tokenizer(  # noqa: PLR0913 - all but three by keyword
    recipe: str | Path | TokenizerRecipe,
    data: GivenData,
    out: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    accept_changed_data: bool = False,
    device: str | None = None,
    on_row: OnRow | None = None,
    after_step: AfterStep | None = None,
    optimiser: MakeOptimiser | None = None,
) -> dict[str, Any]:
    """Stage 1, as `beit tokenizer`; returns what `--json` prints.

    Args:
        recipe: A name, a run folder or .yaml file, or a value such as
            `beit.recipe("tiny").tokenizer`.
        data: A folder of pictures, or any other source the command line takes; or an object: see
            `pictures`.
        out: The run folder.
        changes: Recipe fields by dotted name.
        resume: Go on with the run in it.
        accept_changed_data: Go on although the pictures are others now.
        device: "cpu", "cuda" or "cuda:N"; the best there is by default.
        on_row: Called with each row of metrics once it is logged, as for a tracker of one's own.
        after_step: Called with the task and the number of each step that was made.
        optimiser: Makes another optimiser than AdamW; see `beit.engine.protocol.Hooks`.
    """
    wanted = wanted_tokenizer_recipe(recipe)
    hooks = Hooks(on_row, after_step, optimiser)
    request = RunRequest(as_data(data), Path(out), resume, accept_changed_data, device, hooks)
    return _train_tokenizer(replace(wanted, changes or {}), request)


def pretrain(  # noqa: PLR0913 - all but three by keyword
    recipe: str | Path | PretrainRecipe,
    data: GivenData,
    out: str | Path,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    bank: str | Path | None = None,
    init: str | Path = "none",
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    accept_changed_data: bool = False,
    device: str | None = None,
    on_row: OnRow | None = None,
    after_step: AfterStep | None = None,
    optimiser: MakeOptimiser | None = None,
) -> dict[str, Any]:
    """Stage 2, as `beit pretrain`; without `tokenizer` or `bank` stage 1 comes first.

    Args:
        recipe: A name, a run folder or .yaml file, or a value such as
            `beit.recipe("tiny", {"optim.lr": 3e-4})`.
        data: A folder of pictures, or any other source the command line takes; or an object: see
            `pictures`.
        out: The run folder.
        tokenizer: The run folder of a trained tokenizer, DALL-E's `encoder.pkl`, or an object such
            as `beit.tokenizer.protocol.Tokenizer` describes. Such a one is frozen, must be handed
            over again to resume, and is known by `fingerprint` or by its weights.
        bank: A token bank; it brings its tokenizer.
        init: A model to go on from, with its tokenizer if that lies beside it; "none" for fresh
            weights.
        changes: Recipe fields by dotted name.
        resume: Go on with the run in `out`.
        accept_changed_data: Go on although the pictures are others now.
        device: "cpu", "cuda" or "cuda:N"; the best there is by default.
        on_row: Called with each row of metrics once it is logged, as for a tracker of one's own.
        after_step: Called with the task and the number of each step that was made.
        optimiser: Makes another optimiser than AdamW; see `beit.engine.protocol.Hooks`.
    """
    wanted = wanted_recipe(recipe, PretrainRecipe)
    hooks = Hooks(on_row, after_step, optimiser)
    request = RunRequest(as_data(data), Path(out), resume, accept_changed_data, device, hooks)
    return _pretrain(replace(wanted, changes or {}), request, tokenizer, bank, str(init))


def bank(
    recipe: str | Path | PretrainRecipe,
    data: GivenData,
    out: str | Path,
    *,
    tokenizer: str | Path,
    views: int | None = None,
    changes: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Compute the visual tokens of all views of a pre-training once, as `beit bank`.

    Args:
        recipe: That of the pre-training: a name, a run folder or .yaml file, or a recipe.
        data: Its pictures.
        out: A folder for the bank; one that was interrupted is gone on with.
        tokenizer: The run folder of a trained tokenizer, or DALL-E's `encoder.pkl`.
        views: Views of each picture, used again in turn; by default a new one each epoch.
        changes: Recipe fields by dotted name.
        device: "cpu", "cuda" or "cuda:N"; the best there is by default.
    """
    wanted = replace(wanted_recipe(recipe, PretrainRecipe), changes or {})
    request = RunRequest(as_data(data), Path(out), device=device)
    return make_bank(wanted, request, tokenizer, views)


def classify(  # noqa: PLR0913 - all but three by keyword
    recipe: str | Path | ClassifyRecipe,
    data: GivenData,
    out: str | Path,
    *,
    init: str | Path,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    accept_changed_data: bool = False,
    device: str | None = None,
    on_row: OnRow | None = None,
    after_step: AfterStep | None = None,
    optimiser: MakeOptimiser | None = None,
) -> dict[str, Any]:
    """Fine-tune a classifier, as `beit classify`; returns what `--json` prints.

    Args:
        recipe: A name from `beit recipes list`, a run folder or .yaml file, or a recipe.
        data: Pictures, one folder a class, or an object: see `pictures`.
        out: The run folder.
        init: What to start from: a run, a model folder, a weight file, timm:NAME, or "none".
        changes: Recipe fields by dotted name.
        resume: Go on with the run in `out`.
        accept_changed_data: Go on although the pictures are others now.
        device: "cpu", "cuda" or "cuda:N"; the best there is by default.
        on_row: Called with each row of metrics once it is logged, as for a tracker of one's own.
        after_step: Called with the task and the number of each step that was made.
        optimiser: Makes another optimiser than AdamW; see `beit.engine.protocol.Hooks`.
    """
    wanted = wanted_recipe(recipe, ClassifyRecipe)
    hooks = Hooks(on_row, after_step, optimiser)
    request = RunRequest(as_data(data), Path(out), resume, accept_changed_data, device, hooks)
    return _classify(replace(wanted, changes or {}), request, str(init))


def segment(  # noqa: PLR0913 - all but three by keyword
    recipe: str | Path | SegmentRecipe,
    data: GivenData,
    out: str | Path,
    *,
    init: str | Path,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    accept_changed_data: bool = False,
    device: str | None = None,
    on_row: OnRow | None = None,
    after_step: AfterStep | None = None,
    optimiser: MakeOptimiser | None = None,
) -> dict[str, Any]:
    """Fine-tune a segmenter, as `beit segment`; arguments as in `classify`, data with masks.

    As objects they are a pair of sources that have `mask` (`beit.data.pairs.pairs.PairSource`).
    """
    wanted = wanted_recipe(recipe, SegmentRecipe)
    hooks = Hooks(on_row, after_step, optimiser)
    request = RunRequest(as_data(data), Path(out), resume, accept_changed_data, device, hooks)
    return _segment(replace(wanted, changes or {}), request, str(init))


def predict(
    model: str | Path,
    pictures: str | Path | Sequence[str | Path],
    *,
    top: int = 1,
    out: str | Path | None = None,
    dense: Mapping[str, Any] | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """What a classifier or a segmenter says of pictures, as `beit predict`.

        found = beit.predict("runs/cls", "holiday/", top=3)
        found["predictions"][0]  # {"picture": ..., "labels": [{"label": ..., "probability": ...}]}

    Args:
        model: A run, a model folder, `hf://owner/name` or other people's weights.
        pictures: A file, a folder or a pattern such as `photos/*.jpg`, or several of them.
            A picture named twice, also by way of a link, is looked at once.
        top: Classes of each picture, the likeliest first.
        out: A folder for masks and overlays; segmenters need one.
        dense: Changes to how a segmenter looks at whole pictures: mode, scales, flip.
        device: "cpu", "cuda" or "cuda:N"; the best there is by default.
        quiet: Print nothing but what cannot be read.

    Returns:
        "model", the number of "pictures" that were read, "predictions" in their order (of a
        segmenter "picture", "mask", "overlay" and the "shares" of the classes), and "unreadable".

    Raises:
        UserError: The model, a name or every picture is unusable.
    """
    folder = None if out is None else Path(out)
    wishes = Wishes(top, out=folder, dense=dense or {}, quiet=quiet)
    return _predict(model, pictures, wishes, device)


def convert(  # noqa: PLR0913 - all but three by keyword
    source: str | Path,
    target: str | Path,
    to: Format,
    *,
    image_size: tuple[int, int] | None = None,
    heads: int | None = None,
    ema: bool = False,
    encoder_only: bool = False,
    normalisation: Literal["imagenet", "half"] | None = None,
    data: str = DIGITS,
) -> dict[str, Any]:
    """Weights from and to other programs' formats, as `beit convert`.

    Args:
        source: A run, a folder or weight file of others, timm:NAME, hf://owner/name, or DALL-E's
            `encoder.pkl`.
        target: The folder or file to make.
        to: "beit", "reference", "transformers", "timm", "onnx" or "torch-export".
        image_size: (height, width) of a source that is not square and does not say.
        heads: Attention heads of a source that does not say.
        ema: Take the moving average of the weights.
        encoder_only: Leave the head out.
        normalisation: How the source's inputs were normalised, where it does not say.
        data: Pictures to test a graph on.

    Returns:
        What was read and written, and every assumption and omission under "notes".
    """
    return _convert(
        source, target, to, Options(image_size, heads, ema, encoder_only, normalisation, data)
    )


def plan(  # noqa: PLR0913 - all but one by keyword
    recipe: str | Path | PretrainRecipe | ClassifyRecipe | SegmentRecipe,
    *,
    images: int | None = None,
    data: GivenData | None = None,
    devices: int = 1,
    machine: str = "here",
    task: Task | None = None,
    changes: Mapping[str, Any] | None = None,
    bank_views: int | None = None,
    rate: float | None = None,
    share: float | None = None,
    memory: float | None = None,
    device: str | None = None,
    seconds: float = 20.0,
) -> dict[str, Any]:
    """Time, memory and disk of a run, as `beit plan --json` prints them.

    Args:
        recipe: A name from `beit recipes list`, a run folder or .yaml file, or a recipe.
        images: Pictures to train on; or
        data: where they are, to time their reading too.
        devices: That share a batch.
        machine: "here" times real steps; other names are those of
            `beit.commands.planning.machines.MACHINES`.
        task: Whose recipe a name is, where several tasks have one; pre-training's by default.
        changes: Recipe fields by dotted name.
        bank_views: Views of each picture in a token bank, where there will be one.
        rate: TFLOP/s of a machine that is not known by name, in the run's precision.
        share: Of the rate of a machine that is not here, that a step reaches.
        memory: GB of such a machine's device.
        device: What to time steps on here.
        seconds: That timing steps may take, roughly.
    """
    wanted = recipe_named(recipe, task)[1] if isinstance(recipe, (str, Path)) else recipe
    where = None if data is None else as_data(data)
    request = PlanRequest(
        images=images,
        data=where,
        devices=devices,
        machine=machine,
        bank_views=bank_views,
        rate=None if rate is None else rate * 1e12,
        share=share,
        memory=None if memory is None else memory * 1e9,
        device=device,
        seconds=seconds,
    )
    return _plan(replace(wanted, changes or {}), request)
