"""The report of a run, whatever state the run is in and whatever its pictures are called."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beit.commands.assembly.build import masked_image_model
from beit.commands.looking import figures
from beit.commands.looking.figures import Pictures, affordable, masked_pixels_figure
from beit.data.sources.opening import open_source
from beit.pixels import PIXEL_MEAN
from beit.recipes.named import pretrain_recipe
from beit.recipes.overrides import replace
from commands.recipe_runs import beit, pictures, pretraining, stopped, tokenizing

EVIL = "<img src=x onerror=alert(1)>"
EVIL_TOO = "'\"><script>alert(2)"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training on pictures in folders whose names are HTML."""
    home = tmp_path_factory.mktemp("report")
    for split, count in (("train", 30), ("val", 4)):
        pictures(home / EVIL / split, count, classes=(EVIL, EVIL_TOO))
    outcome = beit(*pretraining(home / f"run {EVIL}", home / EVIL))
    assert outcome.status == 0, outcome.err
    return home / f"run {EVIL}"


def page_of(run: Path, *more: object) -> str:
    outcome = beit("report", run, "--json", *more)
    assert outcome.status == 0, outcome.err
    assert outcome.result == {"report": str(run / "report.html")}
    page = (run / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""<[^>]*\b(?:src|href)\s*=\s*["']?([^"'\s>]{0,9})""", page)
    assert set(sources) <= {"data:imag", "#section-"} and "data:imag" in sources
    assert "http:" not in page and "https:" not in page and "<script" not in page
    assert EVIL not in page
    return page


def headings(page: str) -> list[str]:
    *sections, last = re.findall(r"<h2>([^<]*)", page)
    assert last == "How this run was made"
    return sections


def test_a_finished_run(finished: Path) -> None:
    page = page_of(finished)
    assert headings(page)[:3] == ["Pre-training", "What the model fills in", "Where it looks"]
    for part in ("Training the tokenizer", "Reconstructions", "Codebook use"):
        assert part in headings(page)
    assert "not finished" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    for text in ("most frequent code", "copy the nearest visible patch", "vocabulary: 8"):
        assert text in page


def test_frozen_features_of_as_many_pictures_as_there_is_time_for(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "20 nearest neighbours, 30 training, 4 other" in page_of(finished)
    monkeypatch.setattr(figures, "BUDGET", {"cpu": 1.0, "cuda": 1.0})
    monkeypatch.setattr(figures, "LEAST_KNOWN", 12)
    assert "12 nearest neighbours, 12 training, 3 other" in page_of(finished)


def test_photos_that_lie_partly_loose_have_a_report(tmp_path: Path) -> None:
    """Whatever is without a class: frozen features are left out, and nothing else is."""
    data = pictures(tmp_path / "trips", 60, classes=("2023", "2024"))
    for number, photo in enumerate(sorted((data / "2023").iterdir())[:20]):
        photo.rename(data / f"loose-{number}{photo.suffix}")
    assert beit(*pretraining(tmp_path / "run", data)).status == 0
    assert headings(page_of(tmp_path / "run"))[:3] == [
        "Pre-training",
        "What the model fills in",
        "Where it looks",
    ]
    assert "Frozen features" not in headings(page_of(tmp_path / "run"))


@pytest.mark.parametrize("draws", [1, 3])
def test_few_labels_are_drawn_and_told(finished: Path, tmp_path: Path, draws: int) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    accuracies = {"from scratch": [0.25] * draws, "pre-trained": [0.75] * draws}
    (run / "few_labels.json").write_text(json.dumps({"2": accuracies, "5": accuracies}))
    page = page_of(run)
    assert "accuracy of each method" in page
    for text in ("2 a class", "5 a class", f"{draws} draws"):
        assert text in page


def test_a_larger_model_looks_at_fewer_pictures() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert affordable(4e8, cpu) == (8_000, 2_000)
    assert affordable(4e10, cpu) == (figures.LEAST_KNOWN, figures.LEAST_KNOWN // 4)
    assert affordable(1e6, cpu) == (figures.MOST_KNOWN, figures.MOST_COUNTED)
    assert affordable(4e10, cuda) == (figures.MOST_KNOWN, figures.MOST_COUNTED)


def test_its_tokenizer_has_one_of_its_own(finished: Path) -> None:
    assert headings(page_of(finished / "tokenizer"))[0] == "Training the tokenizer"


def test_other_pictures_can_be_shown(finished: Path, tmp_path: Path) -> None:
    page = page_of(finished, "--data", pictures(tmp_path / "flat", 30))
    assert "Frozen features" not in headings(page) and "Reconstructions" in headings(page)
    refused = beit("report", finished, "--data", tmp_path / "nothing")
    assert refused.status == 2 and "no folder" in refused.complaint


def test_pictures_that_are_gone_are_said_to_be(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for folder in (run, run / "tokenizer"):
        (folder / "source.json").write_text('{"data": "nowhere/at/all"}')
    page = page_of(run)
    assert headings(page) == ["Pre-training", "Training the tokenizer"]
    assert page.count("Without pictures") == 1 and "--data" in page


def test_pictures_that_cannot_be_read_are_said_to_be(finished: Path, tmp_path: Path) -> None:
    """Found when they were read: the folder is there, and its files are."""
    for photo in pictures(tmp_path / "bad", 4).iterdir():
        photo.write_bytes(b"no picture")
    page = page_of(finished, "--data", tmp_path / "bad")
    assert headings(page) == ["Pre-training", "Training the tokenizer"]
    assert page.count("not one of 4 pictures looked at in") == 2
    for name in ("a", "b"):  # only those to measure on
        pictures(tmp_path / "half" / "train" / name, 2)
        pictures(tmp_path / "half" / "val" / name, 2)
    for photo in (tmp_path / "half" / "train").rglob("*.jpg"):
        photo.write_bytes(b"no picture")
    page = page_of(finished, "--data", tmp_path / "half")
    assert "Where it looks" in headings(page) and "Without frozen features" in page


def test_an_unfinished_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert stopped(pretraining(run), "TokenizeTask", 2).status == 143
    for folder in (run, run / "tokenizer"):  # the first has not even begun to train
        assert "not finished" in page_of(folder)
    with (run / "tokenizer" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "spl')  # torn by a kill
    assert "Training the tokenizer" in headings(page_of(run))


def test_pixels_have_no_tokenizer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert beit(*pretraining(run, objective__target="pixels", optim__steps=2)).status == 0
    page = page_of(run)
    own = ["Pre-training", "What the model fills in", "Where it looks", "Frozen features"]
    assert headings(page) == own
    for text in ("mean colour of the visible patches", "pixels explained"):
        assert text in page


def test_a_figure_with_the_models_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Visible patches are the picture's; masked ones are what the head says, here one grey."""
    recipe = replace(pretrain_recipe("digits"), {"objective.target": "pixels", "encoder.depth": 1})
    model = masked_image_model(recipe, 0).eval()
    for parameter in model.head.output.parameters():
        torch.nn.init.zeros_(parameter)  # the mean colour
    columns: list[Any] = []

    def page(*found: Any) -> bytes:
        columns.extend(found)
        return b""

    monkeypatch.setattr(figures, "masked_page", page)
    shown = Pictures(open_source("digits", "val"), torch.device("cpu"))
    masked_pixels_figure(recipe, model, shown)
    originals, seen, filled = columns
    grey = (seen == 128).reshape(len(seen), 4, 4, 4, 4, 3).all((2, 4, 5))  # whole patches of 4 px
    hidden = grey.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(filled[~hidden], originals[~hidden], atol=1e-6)
    assert hidden.any() and np.ptp(filled[hidden], axis=0).max() < 1e-6
    np.testing.assert_allclose(filled[hidden][0], PIXEL_MEAN, atol=1e-6)


@pytest.mark.parametrize("text", ["{", "- 1", "name: 1", "\udcff"])
def test_a_damaged_recipe_is_the_users(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    outcome = beit("report", tmp_path)
    assert outcome.status == 2 and "recipe.yaml" in outcome.complaint
    resumed = beit(*tokenizing(tmp_path), "--resume")
    assert resumed.status == 2 and len(resumed.err.splitlines()) == 1
