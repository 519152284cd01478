"""The card of a published model, in the hub's Markdown: where it is from, how good, how to load."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from beit.commands.assembly import saved_models
from beit.commands.assembly.leftovers import BEST
from beit.commands.assembly.run_files import RunFiles
from beit.commands.assembly.saved_models import Model
from beit.commands.sharing.private_paths import without_paths
from beit.files import read_json_object, sha256_of
from beit.interop import hub
from beit.interop.normalisation import IMAGENET
from beit.nn.classifier import Classifier
from beit.nn.encoder import Encoder
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.own_decoder import OURS
from beit.nn.segmenter import Segmenter
from beit.report.text import format_number, printable
from beit.version import VERSION

PAPER = "https://arxiv.org/abs/2106.08254"
_SHOWN_LABELS = 50
_NO_FIGURES = {"step", "epoch", "samples_seen", "split", "lr"}


@dataclass(frozen=True)
class Story:
    """What is known of a model that is to be published.

    Attributes:
        source: The folder of the model.
        run: The folder of the run that made it; the same unless it is a run's `best`.
        model: The model itself.
        facts: Its config.json.
        recipe: The whole recipe; None for a model without a run.
        result: The run's own summary.
        figures: The last evaluation, or the one at which the model was the best.
        initial: What the run began from.
        data: What the pictures are called in public.
    """

    source: Path
    run: Path
    model: Model
    facts: Mapping[str, Any]
    recipe: Mapping[str, Any] | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    initial: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None


def story_of(source: Path, model: Model, data: str | None = None) -> Story:
    """Gather what a run folder, its `best`, or a bare model folder says of a model.

    Raises:
        UserError: The run's recipe is damaged.
    """
    facts = saved_models.read_config(source)
    is_best = source.absolute().name == BEST and (source.parent / "recipe.yaml").is_file()
    run = source.parent if is_best else source
    if not (run / "recipe.yaml").is_file():
        return Story(source, run, model, facts, data=data)
    files = RunFiles(run)
    where = Path(str(files.data)).name or str(files.data)
    return Story(
        source,
        run,
        model,
        facts,
        recipe=without_paths(files.recipe.model_dump(mode="json")),
        result=without_paths(_json(run / "result.json")),
        figures=_figures(files, facts.get("step") if is_best else None),
        initial=_json(run / "initial.json"),
        data=data or where,
    )


def _json(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.is_file() else {}


def _figures(files: RunFiles, step: object) -> dict[str, Any]:
    rows = [row for row in files.metrics if row.get("split") == "val"]
    if step is not None:
        rows = [row for row in rows if row.get("step") == step]
    return dict(rows[-1]) if rows else {}


def card(story: Story, licence: str, target: str, note: str = "") -> str:
    """Write the card.

    Args:
        story: What is known.
        licence: The hub's name of a licence.
        target: Where it will be: `hf://owner/name`, or a folder.
        note: Markdown to add.
    """
    spec = target if target.startswith(hub.PREFIX) else f"{hub.PREFIX}owner/name"
    parts = [
        _front_matter(story, licence),
        f"# {_title(story, spec)}\n",
        _about(story),
        *_sections(story, spec),
    ]
    if note.strip():
        parts.append(f"## Notes\n\n{note.strip()}\n")
    parts.append(f"## Licence\n\n`{licence}`, chosen by whoever published the model.\n")
    return "\n".join(parts)


def _sections(story: Story, spec: str) -> Iterator[str]:
    yield f"## How to load it\n\n{_how_to_load(story, spec)}"
    yield f"## What it is\n\n{_table(('', ''), _properties(story))}"
    if story.figures:
        step = story.figures.get("step")
        figures = [(name, format_number(value)) for name, value in _numbers(story.figures)]
        told = f"Measured on the run's own validation pictures after step {step}.\n\n"
        yield f"## Figures\n\n{told}{_table(('figure', 'value'), figures)}"
    if story.recipe is not None:
        yield f"## Data and recipe\n\n{_data(story)}"
    labels = getattr(story.model, "labels", ())
    if labels:
        shown = ", ".join(_code(label) for label in labels[:_SHOWN_LABELS])
        more = len(labels) - _SHOWN_LABELS
        rest = f" and {more} more (in `config.json`)" if more > 0 else ""
        yield f"## Classes\n\n{shown}{rest}\n"


def _front_matter(story: Story, licence: str) -> str:
    tags = ["beit", "vision-transformer", _what(story.model).replace(" ", "-")]
    said: dict[str, Any] = {"license": licence, "library_name": "beit", "tags": tags}
    pipelines = {
        Classifier: "image-classification",
        Segmenter: "image-segmentation",
        MaskedImageModel: "image-feature-extraction",
        Encoder: "image-feature-extraction",
    }
    pipeline = pipelines.get(type(story.model))
    if pipeline is not None:
        said["pipeline_tag"] = pipeline
    return f"---\n{yaml.safe_dump(said, sort_keys=False)}---\n"


def _what(model: Model) -> str:
    names = {
        Classifier: "classifier",
        Segmenter: "segmenter",
        MaskedImageModel: "masked image model",
        Encoder: "encoder",
    }
    return names.get(type(model), "image tokenizer")


def _title(story: Story, spec: str) -> str:
    name = spec.rpartition("/")[2]
    own = name if name != "name" else story.run.absolute().name
    return f"{printable(own)}: a {_what(story.model)}"


def _about(story: Story) -> str:
    recipe = "" if story.recipe is None else f" by its recipe {_code(story.recipe['name'])}"
    trained = "Converted" if "converted_from" in story.facts else "Trained"
    return f"{trained} with `beit` {VERSION}{recipe}, after [BEiT]({PAPER}).\n"


def _how_to_load(story: Story, spec: str) -> str:
    lines = ["```python", "import beit", "", f'model = beit.load("{spec}")', "```", ""]
    if isinstance(story.model, Segmenter) and story.model.config.kind not in OURS:
        kind = _code(story.model.config.kind)
        lines += [f"once its decoder {kind} is registered by `beit.nn.own_decoder.register`.", ""]
    elif isinstance(story.model, (Classifier, Segmenter)):
        masks = " --out MASKS" if isinstance(story.model, Segmenter) else ""
        lines += [f"or, on the command line, `beit predict {spec} PICTURES{masks}`.", ""]
    elif isinstance(story.model, (MaskedImageModel, Encoder)):
        lines += [
            f"or fine-tune it: `beit classify RECIPE --data SRC --init {spec} --out RUN`.",
            "",
        ]
    encoder = _encoder(story.model)
    if encoder is not None:
        height, width = encoder.config.image_size
        lines.append(
            f"It takes (B, 3, {height}, {width}) pictures, normalised with mean "
            f"{list(IMAGENET.mean)} and deviation {list(IMAGENET.deviation)}: "
            "`beit.inputs(model, PICTURES)`.\n"
        )
    return "\n".join(lines)


def _encoder(model: Model) -> Encoder | None:
    if isinstance(model, Encoder):
        return model
    found = getattr(model, "encoder", None)
    return found if isinstance(found, Encoder) else None


def _properties(story: Story) -> list[tuple[str, str]]:
    count = sum(parameter.numel() for parameter in story.model.parameters())
    rows = [("kind", _what(story.model)), ("parameters", f"{count:,}")]
    encoder = _encoder(story.model)
    if encoder is not None:
        config = encoder.config
        rows += [
            ("blocks, width, heads", f"{config.depth}, {config.width}, {config.heads}"),
            ("pictures", "x".join(map(str, config.image_size)) + " px"),
            ("patches", "x".join(map(str, config.patch_size)) + " px"),
            ("positions", _positions(encoder)),
        ]
    if isinstance(story.model, (Classifier, Segmenter)):
        rows.append(("classes", str(story.model.classes)))
    digest = sha256_of(story.source / hub.WEIGHTS)
    return [*rows, ("SHA-256 of the weights", _code(digest))]


def _positions(encoder: Encoder) -> str:
    config = encoder.config
    relative = config.relative_positions
    kinds = ["absolute"] if config.absolute_positions else []
    kinds += [f"relative bias, {relative}"] if relative != "none" else []
    return " and ".join(kinds) or "none"


def _data(story: Story) -> str:
    assert story.recipe is not None
    source = _json(story.run / "source.json")
    rows = [("pictures", _code(story.data or "unknown"))]
    if "pictures" in source:
        rows.append(("how many to train on", f"{int(source['pictures']):,}"))
    for name in ("steps", "samples_seen"):
        if name in story.result:
            rows.append((name.replace("_", " "), f"{int(story.result[name]):,}"))
    if "init" in story.initial:
        began = str(story.initial["init"])
        rows.append(("began from", "scratch" if began == "none" else _code(without_paths(began))))
    text = yaml.safe_dump(dict(story.recipe), sort_keys=False, allow_unicode=True)
    whole = f"<details><summary>The whole recipe</summary>\n\n```yaml\n{text}```\n\n</details>\n"
    return f"{_table(('', ''), rows)}\n{whole}"


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if name not in _NO_FIGURES:
                yield printable(name), float(value)


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    lines += [f"| {name.replace('|', '/')} | {value.replace('|', '/')} |" for name, value in rows]
    return "\n".join(lines) + "\n"


def _code(text: object) -> str:
    """Text from outside, as Markdown that is shown and not obeyed."""
    return f"`{printable(str(text)).replace('`', chr(39))}`"
