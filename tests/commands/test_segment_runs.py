"""Segmentation from the command line: what a run leaves, measures, predicts and refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beit.commands.assembly.saved_models import load
from beit.commands.using.evaluating import iou_table
from beit.files import sha256_of
from beit.nn.segmenter import Segmenter
from commands.fine_tuning_runs import MASK_CLASSES as CLASSES
from commands.fine_tuning_runs import classifying, coloured, halves, segmenting
from commands.recipe_runs import beit, pretraining, rows_of, stopped


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return halves(tmp_path_factory.mktemp("data") / "halves")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    out = tmp_path_factory.mktemp("learned") / "run"
    fields: dict[str, Any] = {"optim__steps": 40, "engine__evaluate_every": 20}
    outcome = beit(*segmenting(out, data, optim__warmup_steps=4, optim__lr=0.005, **fields))
    assert outcome.status == 0, outcome.err
    return out


def test_learns_and_leaves_everything(learned: Path) -> None:
    result = json.loads((learned / "result.json").read_text())
    assert result["validation"]["miou"] > 0.85 and result["best"]["miou"] > 0.85
    for folder in (learned, learned / "best"):
        model = load(folder)
        assert isinstance(model, Segmenter) and model.labels == CLASSES
    found = json.loads((learned / "evaluation.json").read_text())
    assert found["labels"] == list(CLASSES) and len(found["iou"]) == 2
    assert {"miou", "pixel_accuracy"} <= set(rows_of(learned, "val")[0])


def test_evaluate_gives_the_run_s_own_numbers_and_reads_the_test_split(
    learned: Path, data: Path
) -> None:
    outcome = beit("evaluate", learned, "--data", data, "--json")
    assert outcome.status == 0, outcome.err
    own = json.loads((learned / "result.json").read_text())["validation"]
    assert outcome.result["miou"] == pytest.approx(own["miou"], abs=1e-9)
    more = ["--split", "test", "--scales", "0.75", "1", "--flip"]
    table = beit("evaluate", learned, "--data", data, *more)
    assert table.status == 0 and "mean IoU" in table.out and "bright" in table.out


def test_a_report_of_pictures_that_are_cut_off_is_without_overlays(
    learned: Path, tmp_path: Path
) -> None:
    """Their headers are sound, which is all that a look at the masks takes in."""
    for picture in (halves(tmp_path / "cut") / "images" / "val").iterdir():
        picture.write_bytes(picture.read_bytes()[:-40])
    assert beit("report", learned, "--data", tmp_path / "cut").status == 0
    page = (learned / "report.html").read_text()
    assert "Without overlays: not one of the pictures looked at in" in page
    assert "By class" in page and "<h2>Overlays" not in page


def test_classes_that_never_occur_are_counted_and_not_listed() -> None:
    found = {"labels": ["sky", "sea", "sun"], "iou": [0.5, None, 0.0]}
    table = iou_table({**found, "miou": 0.25, "pixel_accuracy": 0.5})
    assert [row[0] for row in table.rows] == ["sky", "sun"]
    assert "1 of 3 classes" in table.caption


def test_rare_classes_count_for_more_when_asked(tmp_path: Path, data: Path) -> None:
    """The first step's loss is of the same crops and weights, weighted or not."""
    losses = []
    for balance in (0.0, 1.0):
        out = tmp_path / str(balance)
        fields: dict[str, Any] = {"class_balance": balance, "optim__steps": 1}
        outcome = beit(*segmenting(out, data, optim__warmup_steps=0, **fields))
        assert outcome.status == 0, outcome.err
        losses.append(rows_of(out, "train")[0]["loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_two_processes_measure_the_same(
    learned: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = beit("evaluate", learned, "--data", data, "--json")
    assert beit("evaluate", learned, "--data", data, "--json", "--processes", 2).status == 0
    together = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert together == alone.result


def test_predict_writes_masks_and_overlays(learned: Path, data: Path, tmp_path: Path) -> None:
    out, twin = tmp_path / "masks", tmp_path / "twin"
    twin.mkdir()
    shutil.copy(data / "images" / "val" / "000.png", twin / "000.png")
    pictures = [data / "images" / "val", twin / "000.png"]
    outcome = beit("predict", learned, *pictures, "--out", out, "--lines")
    assert outcome.status == 0, outcome.err
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [Path(line["mask"]).name for line in lines] == [
        *("000.png", "001.png", "002.png", "000-2.png")
    ]
    for line in lines:
        with Image.open(line["mask"]) as mask, Image.open(line["picture"]) as picture:
            assert mask.size == picture.size and mask.mode == "P"
            values = np.array(mask)
        assert set(np.unique(values)) <= {0, 1}
        assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert Path(line["mask"]).with_suffix(".overlay.png").is_file()
    with Image.open(data / "annotations" / "val" / "001.png") as mask:
        truth = np.array(mask)
    found = np.array(Image.open(out / "001.png"))
    assert (found == truth)[truth != 255].mean() > 0.85
    refused = beit("predict", learned, *pictures)
    assert refused.status == 2 and "--out" in refused.complaint
    assert beit("predict", learned, *pictures, "--out", out).status == 0  # over its own


def test_masks_that_count_otherwise_than_those_trained_on_are_told(
    learned: Path, data: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(learned / "best", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"reduce_zero_label": True}))
    picture = data / "images" / "val" / "000.png"
    outcome = beit("predict", model, picture, "--out", tmp_path / "masks")
    assert outcome.status == 0 and "masks count classes from 0" in outcome.err
    assert beit("predict", learned, picture, "--out", tmp_path / "own").err == ""


def test_predict_tells_a_program_what_it_wrote(learned: Path, data: Path, tmp_path: Path) -> None:
    out, odd = tmp_path / "masks", tmp_path / "a\nb.png"
    shutil.copy(data / "images" / "val" / "000.png", odd)
    outcome = beit("predict", learned, odd, "--out", out, "--json")
    assert outcome.status == 0 and outcome.err == ""
    (found,) = outcome.result["predictions"]
    assert found["mask"] == str(out / odd.name) and Path(found["overlay"]).is_file()
    assert found["picture"] == f"{tmp_path}/a\\nb.png"
    line, _ = outcome.out.splitlines()
    assert line.startswith(f"{out}/a\\nb.png  ")
    again = beit("predict", learned, odd, "--out", out)
    assert again.status == 0 and f"1 masks in {out} are written over" in again.err


def test_evaluate_leaves_out_what_training_left_out(
    learned: Path, data: Path, tmp_path: Path
) -> None:
    spoilt = Path(shutil.copytree(data, tmp_path / "spoilt"))
    (spoilt / "images" / "val" / "001.png").write_bytes(b"no picture")
    outcome = beit("evaluate", learned, "--data", spoilt, "--json")
    assert outcome.status == 0 and "001.png: " in outcome.err and "left out" in outcome.err
    assert (outcome.result["pictures"], outcome.result["unreadable"]) == (2, 1)


def test_predict_overwrites_no_picture(learned: Path, data: Path, tmp_path: Path) -> None:
    """Neither one that it was given, nor another that lies where a mask would go."""
    photos = tmp_path / "photos"
    shutil.copytree(data / "images" / "val", photos)
    before = {path: path.read_bytes() for path in photos.iterdir()}
    refused = beit("predict", learned, photos / "000.png", photos / "001.png", "--out", photos)
    assert refused.status == 2 and f"{photos}/000.png is a picture" in refused.complaint
    Image.open(photos / "001.png").save(tmp_path / "001.jpg")
    refused = beit("predict", learned, tmp_path / "001.jpg", "--out", photos)
    assert refused.status == 2 and f"{photos}/001.png is a picture" in refused.complaint
    assert before == {path: path.read_bytes() for path in photos.iterdir()}


def test_a_class_that_no_mask_holds_is_told(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "classes.txt").write_text("dark\nbright\ncar\n")
    outcome = beit(*segmenting(tmp_path / "run", tmp_path / "data", optim__steps=1))
    assert outcome.status == 0 and "holds car: 1 of the classes cannot be learned" in outcome.err


def test_names_of_masks_and_overlays_never_meet(learned: Path, data: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    shutil.copy(data / "images" / "val" / "000.png", photos / "a.png")
    shutil.copy(data / "images" / "val" / "001.png", photos / "a.overlay.png")
    assert beit("predict", learned, photos, "--out", out).status == 0
    assert len(list(out.iterdir())) == 4


def test_masks_of_long_names_have_shorter_ones(learned: Path, data: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    names = ["é" * 124 + end for end in ("a.png", "b.png")] + [
        "a" * 251 + ".png",
        "b" * 200 + ".png",
    ]
    for name in names:
        shutil.copy(data / "images" / "val" / "000.png", photos / name)
    outcome = beit("predict", learned, photos, "--out", out, "--lines")
    assert outcome.status == 0, outcome.err
    masks = [Path(json.loads(line)["mask"]) for line in outcome.out.splitlines()]
    assert len(set(masks)) == 4 and all(mask.is_file() for mask in masks)
    assert len(list(out.iterdir())) == 8 and out / ("b" * 200 + ".png") in masks
    assert beit("predict", learned, photos, "--out", out, "--lines").out == outcome.out


def test_starts_from_a_pretraining_and_from_a_classifier(
    data: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Intermediate fine-tuning: pre-train, classify, segment (paper, section 3.2)."""
    assert beit(*pretraining(tmp_path / "pre")).status == 0
    photos = coloured(tmp_path / "photos")
    words = classifying(tmp_path / "middle", photos, tmp_path / "pre", optim__steps=2)
    assert beit(*words).status == 0
    for start in ("pre", "middle"):
        outcome = beit(*segmenting(tmp_path / f"from-{start}", data, tmp_path / start))
        assert outcome.status == 0, outcome.err
        assert "positions resized from 4x4 to 8x8" in outcome.err
        assert "not used: 4 of its head" in outcome.err


def test_a_segmenter_goes_on_with_its_decoder(learned: Path, data: Path, tmp_path: Path) -> None:
    fields = {"optim__lr": 1e-9, "optim__steps": 1}
    outcome = beit(*segmenting(tmp_path / "on", data, learned, **fields))
    assert outcome.status == 0 and "not used" not in outcome.err, outcome.err
    before = json.loads((learned / "result.json").read_text())["validation"]["miou"]
    assert outcome.result["validation"]["miou"] == pytest.approx(before, abs=1e-3)
    outcome = beit(*segmenting(tmp_path / "other", data, learned, decoder__channels=8, **fields))
    assert outcome.status == 0 and "of its head" in outcome.err
    named = Path(shutil.copytree(data, tmp_path / "named"))
    (named / "classes.txt").write_text("bright\ndark\n")  # the other way round
    outcome = beit(*segmenting(tmp_path / "renamed", named, learned, **fields))
    assert outcome.status == 0 and "of its head" in outcome.err


def test_resuming_is_bitwise(data: Path, tmp_path: Path) -> None:
    fields = {"encoder__drop_path": 0.1, "decoder__dropout": 0.1, "decoder__auxiliary": True}
    run = tmp_path / "run"
    words = segmenting(run, data, **fields)
    for step in (2, 5):
        assert stopped([*words, "--resume"], "SegmentTask", step).status == 143
    assert beit(*words, "--resume").status == 0
    assert beit(*segmenting(tmp_path / "whole", data, **fields)).status == 0
    for name in ("model.safetensors", "metrics.jsonl", "evaluation.json", "best/model.safetensors"):
        assert sha256_of(run / name) == sha256_of(tmp_path / "whole" / name), name


def test_upernet_with_batch_norm_trains_and_loads(data: Path, tmp_path: Path) -> None:
    fields = {"decoder__kind": "upernet", "decoder__norm": "batch", "encoder__image_size": [48, 48]}
    outcome = beit(*segmenting(tmp_path / "run", data, **fields))
    assert outcome.status == 0, outcome.err
    again = beit("evaluate", tmp_path / "run", "--data", data, "--json")
    expected = outcome.result["validation"]["miou"]
    assert again.result["miou"] == pytest.approx(expected, abs=1e-9)


def test_refusals_before_anything_is_made(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    next((broken / "annotations" / "train").iterdir()).unlink()
    outcome = beit(*segmenting(tmp_path / "run", broken))
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    outcome = beit(*segmenting(tmp_path / "run", tmp_path))
    assert outcome.status == 2 and "images" in outcome.complaint
    outcome = beit(*segmenting(tmp_path / "run", data, decoder__kind="pupp"))
    assert outcome.status == 2 and "decoder.kind" in outcome.complaint
    assert not (tmp_path / "run").exists()


def test_masks_of_other_classes_are_refused(learned: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other)
    (other / "classes.txt").write_text("night\nday\n")
    outcome = beit("evaluate", learned, "--data", other)
    assert outcome.status == 2 and "night" in outcome.complaint
