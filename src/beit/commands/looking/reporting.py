"""The report of a run: what its folder holds, gathered and handed to `beit.report`.

A run that is still under way, or was broken off, has a report too: what is not there is left out.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from beit.commands.assembly.initial import began_text
from beit.commands.assembly.run_files import RunFiles
from beit.commands.assembly.saved_models import load_masked_image_model
from beit.commands.assembly.tokenizers import load_tokenizer
from beit.commands.looking.figures import (
    Pictures,
    attention_figure,
    codebook_figure,
    masked_figure,
    masked_pixels_figure,
    neighbour_table,
    reconstruction_figure,
)
from beit.commands.looking.fine_tuning_report import (
    classification_sections,
    noted,
    segmentation_sections,
)
from beit.commands.using.prediction_table import prediction_table
from beit.data.sources.opening import GivenData, Source, as_data, open_source
from beit.evaluation.spread import spread
from beit.files import read_json_object
from beit.nn.masked_image_model import MaskedImageModel
from beit.recipes.downstream_models import ClassifyRecipe, SegmentRecipe
from beit.recipes.models import PretrainRecipe
from beit.report.figures import bars, curves
from beit.report.metrics import latest
from beit.report.page import Figure, RunReport, Section, write
from beit.report.tables import Table, spread_cell

TOKENIZER_CURVES = ("loss", "mse", "perplexity", "kl", "kl_marginal", "temperature")
PRETRAIN_CURVES = ("loss", "accuracy", "lr", "gradient_norm")


def write_report(run: str | Path, data: GivenData | None = None) -> Path:
    """Write `report.html` into a run folder and return its path.

    Args:
        run: The run folder of any training.
        data: Pictures to show; those the run was trained on (its validation part) by default.

    Raises:
        UserError: It is no run folder, or `data` cannot be opened.
    """
    run = Path(run)
    found = RunFiles(run, None if data is None else as_data(data))
    with torch.random.fork_rng([]):  # a model that is read has drawn its weights before
        what, sections = _sections(found)
    report = RunReport(
        title=f"{what} run: {run.absolute().name}",
        subtitle=f"recipe {found.recipe.name}, pictures from {found.data}",
        summary=_summary(found),
        sections=sections,
        recipe=found.recipe_text,
        footnotes=found.notes,
    )
    page = run / "report.html"
    write(report, page)
    return page


def _sections(run: RunFiles) -> tuple[str, list[Section]]:
    recipe = run.recipe
    if isinstance(recipe, PretrainRecipe):
        return "Pre-training", _pretrain_sections(run)
    if isinstance(recipe, ClassifyRecipe):
        return "Classification", classification_sections(run)
    if isinstance(recipe, SegmentRecipe):
        return "Segmentation", segmentation_sections(run, recipe)
    return "Tokenizer", _tokenizer_sections(run)


def _summary(run: RunFiles) -> list[tuple[str, str]]:
    rows = run.metrics
    wanted = {
        "steps": ("step", "train", "{:.0f}"),
        "pictures seen": ("samples_seen", "train", "{:,.0f}"),
        "top-1 accuracy": ("top1", "val", "{:.2%}"),
        "top-5 accuracy": ("top5", "val", "{:.2%}"),
        "calibration error": ("calibration_error", "val", "{:.3f}"),
        "mean IoU": ("miou", "val", "{:.2%}"),
        "pixel accuracy": ("pixel_accuracy", "val", "{:.2%}"),
        "masked-token accuracy": ("accuracy", "val", "{:.1%}"),
        "most frequent code": ("most_frequent_accuracy", "val", "{:.1%}"),
        "copy the neighbour": ("neighbour_copy_accuracy", "val", "{:.1%}"),
        "bits saved a patch": ("bits_saved", "val", "{:.2f}"),
        "variation of masked pixels explained": ("explained", "val", "{:.1%}"),
        "code perplexity": ("perplexity", "val", "{:.0f}"),
        "codes used": ("used_share", "val", "{:.1%}"),
        "reconstruction error": ("mse_hard", "val", "{:.4f}"),
        "evidence bound, bits/dim": ("bits_per_dimension", "val", "{:.2f}"),
    }
    found = [
        (name, form.format(value))
        for name, (key, split, form) in wanted.items()
        if (value := latest(rows, key, split)) is not None
    ]
    return found if run.finished else [*found, ("state", "not finished")]


def _tokenizer_sections(run: RunFiles) -> list[Section]:
    sections = [
        Section(
            "Training the tokenizer",
            [
                "The discrete VAE's loss, its reconstruction error, and how evenly it uses its "
                "codes. Points are measured over the whole validation set, on hard codes."
            ],
            [Figure(curves(run.metrics, TOKENIZER_CURVES), "", "Curves of the tokenizer's run")],
        )
    ]
    if run.finished and run.source is not None:
        model = load_tokenizer(run.path)
        pictures = Pictures(run.source, torch.device("cpu"))
        with noted(run, "reconstructions and use of the codes"):
            sections += [
                Section(
                    "Reconstructions",
                    ["Pictures that were not trained on, and what their codes alone give back."],
                    [reconstruction_figure(model, pictures)],
                ),
                Section(
                    "Codebook use",
                    ["How often each code occurs over the validation set, most used first."],
                    [codebook_figure(model, pictures)],
                ),
            ]
    return sections


def _pretrain_sections(run: RunFiles) -> list[Section]:
    figure = Figure(curves(run.metrics, PRETRAIN_CURVES), "", "Curves of the pre-training run")
    assert isinstance(run.recipe, PretrainRecipe)
    text = (
        "Errors are squared differences of normalised pixels at masked places. Compare them with "
        "the baselines."
        if run.recipe.objective.target == "pixels"
        else "A low accuracy is normal: many codes fit a masked place. Compare it with the "
        "baselines."
    )
    texts = [text, began] if (began := began_text(run.path)) else [text]
    sections = [Section("Pre-training", texts, [figure], _baselines(run))]
    if run.finished and run.source is not None:
        sections += _model_sections(run, run.source)
    sections += _few_labels(run)
    if (run.path / "tokenizer" / "recipe.yaml").is_file():
        tokenizer = RunFiles(run.path / "tokenizer", run.data if run.source is not None else None)
        sections += _tokenizer_sections(tokenizer)
        run.notes += [note for note in tokenizer.notes if note not in run.notes]
    return sections


def _baselines(run: RunFiles) -> list[Table]:
    last = next((row for row in reversed(run.metrics) if row.get("split") == "val"), {})
    table = prediction_table(last, "The whole validation set, at the last evaluation")
    return [] if table is None else [table]


def _model_sections(run: RunFiles, source: Source) -> list[Section]:
    recipe = run.recipe
    assert isinstance(recipe, PretrainRecipe)
    pictures = Pictures(source, torch.device("cpu"))
    sections: list[Section] = []
    model, tokenizer = load_masked_image_model(run.path), None
    if recipe.objective.target == "tokens" and (run.path / "tokenizer" / "config.json").is_file():
        tokenizer = load_tokenizer(run.path / "tokenizer")
    with noted(run, "what the model fills in and where it looks"):
        if tokenizer is not None:
            text = "At masked places the most likely code is taken and decoded; the rest is given."
            figure = masked_figure(recipe, model, tokenizer, pictures)
            sections.append(Section("What the model fills in", [text], [figure]))
        elif recipe.objective.target == "pixels":
            text = "At masked places the model's pixels are put in; the rest is given."
            figure = masked_pixels_figure(recipe, model, pictures)
            sections.append(Section("What the model fills in", [text], [figure]))
        text = (
            "How much the last block takes from each patch, for a patch of the picture that asks."
        )
        figure = attention_figure(recipe, model, pictures)
        sections.append(Section("Where it looks", [text], [figure]))
    if len(source.classes) > 1:
        with noted(run, "frozen features"):
            sections += _frozen_features(run, recipe, model, source)
    return sections


def _frozen_features(
    run: RunFiles, recipe: PretrainRecipe, model: MaskedImageModel, source: Source
) -> list[Section]:
    table = neighbour_table(recipe, model, open_source(run.data, "train"), source)
    text = (
        "Nobody has told the model a class: each validation picture is given the class of the "
        "most similar training pictures, by frozen features (weighted)."
    )
    return [] if table is None else [Section("Frozen features", [text], [], [table])]


def _few_labels(run: RunFiles) -> list[Section]:
    file = run.path / "few_labels.json"
    if not file.is_file():
        return []
    found = read_json_object(file)
    return [
        Section(
            "Learning from few labels",
            ["Every method learns from the same draws and is tested on held-out pictures."],
            [_few_label_figure(found)],
            [few_label_table(found)],
        )
    ]


def _few_label_figure(found: Mapping[str, Mapping[str, list[float]]]) -> Figure:
    methods = list(next(iter(found.values())))
    spreads = [[spread(values[method]) for method in methods] for values in found.values()]
    png = bars(
        [f"{count} a class" for count in found],
        methods,
        [[100 * s.mean for s in group] for group in spreads],
        [[100 * (s.deviation or 0.0) for s in group] for group in spreads],
        axis="accuracy, %",
        emphasis="pre-trained",
    )
    return Figure(png, "Mean and standard deviation over the draws.", "accuracy of each method")


def few_label_table(found: Mapping[str, Mapping[str, list[float]]]) -> Table:
    """The accuracies of `beit demo` in percent, mean and standard deviation over draws."""
    methods = list(next(iter(found.values())))
    rows = []
    for method in methods:
        spreads = [spread(values[method]) for values in found.values()]
        rows.append([method, *(spread_cell(s.mean, s.deviation, scale=100) for s in spreads)])
    draws = len(next(iter(found.values()))[methods[0]])
    return Table(
        ["accuracy, %", *(f"{count} a class" for count in found)],
        rows,
        f"Held-out pictures, {draws} draws of the labels: mean ± standard deviation",
    )
