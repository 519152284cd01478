"""The parts of a report that a fine-tuning has: where it errs, and pictures to judge it by."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beit.batch import ImageBatch
from beit.commands.assembly.initial import began_text
from beit.commands.assembly.run_files import EVALUATION, RunFiles
from beit.commands.assembly.stage import prepared_batches
from beit.commands.looking.figures import BATCH, picture_rows, spread_over
from beit.commands.training.segment import logits_of, settings_of
from beit.commands.using.evaluating import class_table, iou_table, matched_labels
from beit.commands.using.finished import Finished, read_finished
from beit.data.decoding.decode import BadPicture
from beit.data.pairs.pairs import open_pairs
from beit.data.sources.opening import Source
from beit.errors import UserError
from beit.evaluation.dense_inference import dense_classes
from beit.files import read_json_object
from beit.nn.classifier import Classifier
from beit.nn.segmenter import Segmenter
from beit.recipes.downstream_models import ClassifyRecipe, SegmentRecipe
from beit.report.confusion import confusion_figure
from beit.report.figures import curves
from beit.report.overlays import overlay_page
from beit.report.page import Figure, Section
from beit.report.pictures import SheetRow, sheet
from beit.report.text import printable, shortened

CLASSIFY_CURVES = ("loss", "accuracy", "top1", "lr")
SEGMENT_CURVES = ("loss", "pixel_accuracy", "miou", "lr")
SHOWN, COLUMNS = 12, 4
MOST_LOOKED_AT = 1_000  # pictures in which the surest mistakes are looked for
_NAME = 18  # letters of a class below a picture
OVERLAYS = 8


def classification_sections(run: RunFiles) -> list[Section]:
    """Curves, the confusion matrix, and the mistakes that the model is surest of."""
    assert isinstance(run.recipe, ClassifyRecipe)
    sections = [
        Section(
            "Fine-tuning",
            [_measured_on(run) + began_text(run.path)],
            [Figure(curves(run.metrics, CLASSIFY_CURVES), "", "Curves of the fine-tuning")],
        )
    ]
    found = _evaluation(run)
    if found:
        figures = []
        if found["confusion"] is not None:
            figure = confusion_figure(np.array(found["confusion"]), found["labels"])
            caption = "Rows are the true classes, columns what the model says."
            figures.append(Figure(figure, caption, "Confusion matrix"))
        sections.append(
            Section(
                "Where it errs",
                [],
                figures,
                [class_table(found, found["labels"], "The whole validation set")],
            )
        )
    if found and run.finished and run.source is not None and run.source.classes:
        with noted(run, "the surest mistakes"):
            sections += _mistakes(read_finished(run.path), run.source)
    return sections


@contextmanager
def noted(run: RunFiles, what: str) -> Iterator[None]:
    """Leave out what the pictures of now do not allow, and say why in the page."""
    try:
        yield
    except UserError as error:
        run.notes.append(f"Without {what}: {error}.")


def _measured_on(run: RunFiles) -> str:
    if any(row["split"] == "val" for row in run.metrics):
        return "Points are measured over the whole validation set. "
    return "Nothing was measured on validation pictures. "


def segmentation_sections(run: RunFiles, recipe: SegmentRecipe) -> list[Section]:
    """Curves, IoU by class, and overlays."""
    sections = [
        Section(
            "Fine-tuning",
            [_measured_on(run) + began_text(run.path)],
            [Figure(curves(run.metrics, SEGMENT_CURVES), "", "Curves of the fine-tuning")],
        )
    ]
    found = _evaluation(run)
    if found:
        sections.append(Section("By class", [], [], [iou_table(found)]))
    if run.finished and run.source is not None:
        with noted(run, "overlays"):
            sections.append(_overlays(run, recipe))
    return sections


def _evaluation(run: RunFiles) -> dict[str, Any] | None:
    file = run.path / EVALUATION
    return read_json_object(file) if file.is_file() else None


@torch.inference_mode()
def _mistakes(finished: Finished, source: Source) -> list[Section]:
    """The wrong answers that the model gives the highest probability."""
    model = finished.model
    assert isinstance(model, Classifier)
    places, wrong = matched_labels(model, source), []
    few = spread_over(source, MOST_LOOKED_AT)
    for batch in prepared_batches(
        few, finished.views, batch_size=BATCH, device=torch.device("cpu")
    ):
        wrong += _wrong(model, batch, places)
    wrong.sort(key=lambda entry: -entry[0])
    if not wrong:
        return []
    names = model.labels or source.classes
    shown = wrong[:SHOWN]
    captions = [
        f"{_below(names[said])} {p:.0%}\nis {_below(names[true])}" for p, said, true, _ in shown
    ]
    pictures = picture_rows(torch.stack([image for _, _, _, image in shown]))
    rows = [
        SheetRow(
            list(pictures[s : s + COLUMNS]), captions=captions[s : s + COLUMNS], ends_band=True
        )
        for s in range(0, len(shown), COLUMNS)
    ]
    text = f"Among {len(few)} pictures, those that the model is most wrong about."
    return [Section("Surest mistakes", [text], [Figure(sheet(rows), "", "Surest mistakes")])]


def _below(name: str) -> str:
    """A class's name in a line as wide as a picture."""
    return shortened(printable(name), _NAME)


def _wrong(
    model: Classifier, batch: ImageBatch, places: Tensor
) -> list[tuple[float, int, int, Tensor]]:
    assert batch.patch_view is not None and batch.label is not None
    probability, said = model(batch.patch_view).softmax(-1).max(-1)
    true = places[batch.label]
    return [
        (float(probability[row]), int(said[row]), int(true[row]), batch.patch_view[row])
        for row in (said != true).nonzero().flatten().tolist()
    ]


@torch.inference_mode()
def _overlays(run: RunFiles, recipe: SegmentRecipe) -> Section:
    """Pictures, truth and prediction side by side."""
    finished = read_finished(run.path)
    model = finished.model
    assert isinstance(model, Segmenter)
    source = open_pairs(run.data, "val", reduce_zero_label=recipe.data.reduce_zero_label)
    settings = settings_of(model, finished.facts)
    rows, names = [], []
    for index in np.linspace(0, len(source) - 1, min(OVERLAYS, len(source))).round().astype(int):
        with suppress(BadPicture):
            image, mask = np.array(source.read(int(index))), source.mask(int(index))
            pixels = torch.from_numpy(image).permute(2, 0, 1)
            found = dense_classes(logits_of(model), pixels, settings, torch.device("cpu"))
            rows.append((image, mask, found.numpy()))
            names.append(source.identity(int(index)))
    if not rows:
        raise UserError(f"not one of the pictures looked at in {source.name} can be read")
    page = overlay_page(rows, source.palette, source.classes, names=names)
    caption = "Picture, truth, prediction; black is not counted."
    return Section("Overlays", [], [Figure(page, caption, "Pictures with their masks")])
