"""Classification from the command line: what a run leaves, starts from, and refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import beit as api
from beit.commands.assembly import saved_models
from beit.commands.assembly.saved_models import load
from beit.commands.looking import fine_tuning_report
from beit.commands.using import evaluating, predicting
from beit.files import sha256_of
from beit.nn.classifier import Classifier
from beit.report.pictures import SheetRow, sheet
from commands.fine_tuning_runs import CLASSES, classifying, coloured, halves, segmenting
from commands.recipe_runs import beit, pretraining, rows_of, stopped, tokenizing


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured(tmp_path_factory.mktemp("data") / "coloured")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A classifier that tells colours apart."""
    out = tmp_path_factory.mktemp("learned") / "run"
    fields: dict[str, Any] = {"optim__steps": 60, "optim__warmup_steps": 5}
    outcome = beit(*classifying(out, data, engine__evaluate_every=20, **fields))
    assert outcome.status == 0, outcome.err
    return out


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    assert beit(*pretraining(out, encoder__preset="plus")).status == 0
    return out


def test_learns_and_leaves_everything(learned: Path, data: Path) -> None:
    result = json.loads((learned / "result.json").read_text())
    assert result["validation"]["top1"] == 1.0 and result["best"]["top1"] == 1.0
    assert result["best"]["step"] in (20, 40, 60)
    model = load(learned)
    assert isinstance(model, Classifier) and model.labels == CLASSES
    evaluation = json.loads((learned / "evaluation.json").read_text())
    assert evaluation["confusion"] == [[5, 0, 0], [0, 5, 0], [0, 0, 5]]
    assert evaluation["per_class"] == [1, 1, 1] and evaluation["pictures"] == 15
    assert {"top1", "top5", "loss", "calibration_error"} <= set(rows_of(learned, "val")[0])
    assert isinstance(load(learned / "best"), Classifier)


def test_evaluate_gives_the_run_s_own_numbers(learned: Path, data: Path, tmp_path: Path) -> None:
    outcome = beit("evaluate", learned, "--data", data, "--json", "--out", tmp_path / "e.json")
    assert outcome.status == 0, outcome.err
    run = json.loads((learned / "result.json").read_text())["validation"]
    for name in ("top1", "top5", "loss", "calibration_error"):
        assert outcome.result[name] == pytest.approx(run[name], abs=1e-6)
    assert json.loads((tmp_path / "e.json").read_text()) == outcome.result
    again = beit("evaluate", learned, "--data", data, "--json", "--out", tmp_path / "e.json")
    assert again.result == outcome.result and "e.json is written over" in again.err
    (tmp_path / "notes.txt").write_text("mine")
    refused = beit("evaluate", learned, "--data", data, "--out", tmp_path / "notes.txt")
    assert refused.status == 2 and "holds no evaluation" in refused.complaint
    assert (tmp_path / "notes.txt").read_text() == "mine"
    table = beit("evaluate", learned / "best", "--data", data)
    assert table.status == 0 and "green" in table.out and "top-1 100.00%" in table.out


def test_evaluate_matches_classes_by_name(learned: Path, tmp_path: Path) -> None:
    """Pictures of the last classes alone: theirs are other numbers in the folder."""
    some = coloured(tmp_path / "some")
    for split in ("train", "val"):
        shutil.rmtree(some / split / CLASSES[0])
    outcome = beit("evaluate", learned, "--data", some, "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.result["top1"] == 1 and outcome.result["labels"] == list(CLASSES)
    assert outcome.result["per_class_pictures"][0] == 0


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_measures_the_same(
    learned: Path, data: Path, processes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    shares = coloured_less(data, learned.parent / f"less-{processes}")
    alone = beit("evaluate", learned, "--data", shares, "--json")
    assert alone.result["pictures"] == 13 and alone.result["unreadable"] == 1
    assert "red/001.png: not a readable" in alone.err
    assert (
        beit("evaluate", learned, "--data", shares, "--json", "--processes", processes).status == 0
    )
    together = json.loads(capfd.readouterr().out.splitlines()[-1])
    for name, value in alone.result.items():
        expected = pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
        assert together[name] == expected, name


def coloured_less(data: Path, folder: Path) -> Path:
    """The same pictures less two, so that no number of ranks divides them: 13."""
    shutil.copytree(data, folder)
    (folder / "val" / "red" / "000.png").unlink()
    (folder / "val" / "red" / "001.png").write_bytes(b"no picture")
    return folder


def test_predict_names_what_is_on_pictures(learned: Path, data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    one = data / "val" / "green" / "000.png"
    outcome = beit("predict", learned, one, data / "val" / "red", bad, "--top", 2, "--lines")
    assert outcome.status == 0, outcome.err
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line["labels"][0]["label"] for line in lines] == ["green", *["red"] * 5]
    assert all(len(line["labels"]) == 2 for line in lines)
    assert lines[0]["picture"] == str(one) and "bad.png" in outcome.err
    table = beit("predict", learned, str(data / "val" / "*" / "001.png"))
    assert [line.split()[1] for line in table.out.splitlines()] == list(CLASSES)
    refused = beit("predict", learned, bad)
    assert refused.status == 2 and "cannot be read" in refused.complaint
    refused = beit("predict", learned, tmp_path / "nothing-*.png")
    assert refused.status == 2 and "names no picture" in refused.complaint


def test_prediction_and_evaluation_are_the_same_with_other_processes_reading(
    learned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = sorted((data / "val").rglob("*.png"))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    pictures.insert(len(pictures) // 2, bad)

    def told() -> list[dict[str, Any]]:
        results = api.predict(learned, pictures, quiet=True), api.evaluate(learned, data)
        return [dict(result) for result in results]

    alone = told()
    assert [entry["picture"] for entry in alone[0]["unreadable"]] == [str(bad)]
    for module in (predicting, evaluating):
        monkeypatch.setattr(module, "evaluation_workers", lambda *_: 2)
    monkeypatch.setattr(predicting, "BATCH", 3)
    again = told()
    for there, here in zip(alone[0].pop("predictions"), again[0].pop("predictions"), strict=True):
        assert there["picture"] == here["picture"]
        assert there["labels"][0]["label"] == here["labels"][0]["label"]
    assert again == alone


def test_predict_gives_a_program_what_it_says(
    learned: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = data / "val" / "green" / "000.png"
    told = beit("predict", learned, one, "--top", 2, "--json").result
    (found,) = told["predictions"]
    assert found["picture"] == str(one) and found["labels"][0]["label"] == "green"
    assert 0.5 < found["labels"][0]["probability"] <= 1 and len(found["labels"]) == 2
    named: list[Any] = [one, str(one), [one], [str(one)]]
    for pictures in named:
        assert api.predict(learned, pictures, top=2, quiet=True) == told
    assert api.predict(str(learned), [str(one)], top=2) == told
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_report_of_pictures_that_gained_a_class_is_written_without_them(
    learned: Path, data: Path, tmp_path: Path
) -> None:
    run, more = (Path(shutil.copytree(old, tmp_path / old.name)) for old in (learned, data))
    coloured(tmp_path / "other", classes=("violet",))
    for split in ("train", "val"):
        shutil.copytree(tmp_path / "other" / split / "violet", more / split / "violet")
    page = api.write_report(str(run), str(more))
    text = page.read_text()
    assert "Without the surest mistakes" in text and "violet" in text
    assert "Where it errs" in text and "Fine-tuning" in text


def test_captions_of_mistakes_stay_below_their_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell is 320 pixels wide, in which some 25 letters have room."""
    names = tuple(f"a bird whose name is known to few, {kind}" for kind in ("male", "female"))
    data, run = coloured(tmp_path / "data", classes=names), tmp_path / "run"
    assert beit(*classifying(run, data, optim__steps=1)).status == 0
    lines: list[str] = []

    def noted(rows: list[SheetRow]) -> bytes:
        lines.extend(line for row in rows for text in row.captions for line in text.split("\n"))
        return sheet(rows)

    monkeypatch.setattr(fine_tuning_report, "sheet", noted)
    api.write_report(str(run), str(data))
    assert lines and all(len(line) <= 25 for line in lines)
    assert any(line.startswith("is a bird") and line.endswith("male") for line in lines)


def test_a_run_of_another_task_is_not_gone_on_with(
    learned: Path, pretrained: Path, data: Path
) -> None:
    others = {
        "beit classify": [pretraining(learned, data), tokenizing(learned, data)],
        "beit pretrain": [classifying(pretrained, data), tokenizing(pretrained, data)],
    }
    for task, commands in others.items():
        for words in commands:
            outcome = beit(*words, "--resume")
            assert outcome.status == 2 and f"holds a run of {task}" in outcome.complaint


def test_a_model_of_another_kind_is_told_what_it_is(
    learned: Path, pretrained: Path, data: Path, tmp_path: Path
) -> None:
    outcome = beit("evaluate", pretrained / "tokenizer", "--data", data)
    assert outcome.status == 2 and "a tokenizer, which knows no classes" in outcome.complaint
    assert "--init" not in outcome.complaint
    words = ("bank", "digits", "--data", "digits", "--out", tmp_path / "bank", "--tokenizer")
    outcome = beit(*words, learned)
    assert outcome.status == 2 and "holds a classifier; a tokenizer is wanted" in outcome.complaint
    outcome = beit(*words, pretrained)
    assert outcome.status == 2 and f"its own is in {pretrained}/tokenizer" in outcome.complaint


def test_what_is_started_from_is_read_once(
    pretrained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def noted(file: Path) -> Any:
        read.append(file)
        return load_file(file)

    monkeypatch.setattr(saved_models, "load_file", noted)
    outcome = beit(*classifying(tmp_path / "run", data, pretrained))
    assert outcome.status == 0, outcome.err
    assert read.count(pretrained / "model.safetensors") == 1


def test_starts_from_a_pretraining(pretrained: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = beit(*classifying(out, data, pretrained, optim__lr=1e-9))
    assert outcome.status == 0, outcome.err
    assert "weights used; not used: 4 of its head" in outcome.err
    record = json.loads((out / "initial.json").read_text())
    assert set(record["not_used"]) == {f"head.{n}" for n in ("norm.weight", "norm.bias")} | {
        f"head.output.{n}" for n in ("weight", "bias")
    }
    before, after = (
        load_file(pretrained / "model.safetensors"),
        load_file(out / "model.safetensors"),
    )
    name = "encoder.blocks.1.mlp.0.weight"
    name = name if name in before else next(n for n in before if "blocks.1" in n)
    torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=0)
    tables = [n for n in after if n.endswith("bias_table")]
    assert len(tables) == 2  # one shared table became one for each layer


def test_a_classifier_is_a_start_too_and_keeps_its_head_for_the_same_classes(
    learned: Path, data: Path, tmp_path: Path
) -> None:
    """Higher resolution: accuracy does not fall at once (paper, section 3.1)."""
    out = tmp_path / "run"
    fields = {"optim__lr": 1e-9, "optim__steps": 1}
    outcome = beit(*classifying(out, data, learned, **fields), "--image-size", "24")
    assert outcome.status == 0, outcome.err
    assert "positions resized" in outcome.err and "not used" not in outcome.err
    model = load(out)
    assert isinstance(model, Classifier) and model.encoder.config.image_size == (24, 24)
    assert json.loads((out / "result.json").read_text())["validation"]["top1"] >= 0.9
    for classes in (("a", "b"), ("a", "b", "c")):  # as many as before, and still others
        other = coloured(tmp_path / "".join(classes), classes=classes)
        outcome = beit(*classifying(tmp_path / f"of-{other.name}", other, learned, **fields))
        assert outcome.status == 0 and "not used: 4 of its head" in outcome.err


def test_resuming_is_bitwise(data: Path, tmp_path: Path) -> None:
    fields = {
        "encoder__drop_path": 0.1,
        "mixing__mixup": 0.8,
        "mixing__cutmix": 1.0,
        "views__erasing": 0.5,
        "optim__ema": 0.9,
    }
    for step in (2, 5):
        run = tmp_path / f"run-{step}"
        words = classifying(run, data, **fields)
        assert stopped(words, "ClassifyTask", step).status == 143
        assert beit(*words, "--resume").status == 0
    assert beit(*classifying(tmp_path / "whole", data, **fields)).status == 0
    for run in (tmp_path / "run-2", tmp_path / "run-5"):
        for name in ("model.safetensors", "metrics.jsonl", "evaluation.json"):
            assert sha256_of(run / name) == sha256_of(tmp_path / "whole" / name), (run, name)
        assert sha256_of(run / "best" / "model.safetensors") == sha256_of(
            tmp_path / "whole" / "best" / "model.safetensors"
        )


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_the_average_is_what_is_measured_and_kept(task: str, tmp_path: Path) -> None:
    """At a rate at which the weights of the last step have left their average far behind."""
    fields = {"optim__ema": 0.99, "optim__lr": 0.05, "optim__steps": 4}
    run, words = tmp_path / "run", classifying
    data = coloured(tmp_path / "data") if task == "classify" else halves(tmp_path / "data")
    if task == "segment":
        words = segmenting
    trained = beit(*words(run, data, **fields))
    assert trained.status == 0, trained.err
    state = load_file(run / "checkpoints" / "step-00000004" / "model.safetensors")
    kept = load_file(run / "model.safetensors")
    assert any(not torch.equal(state[f"model.{name}"], kept[name]) for name in kept)
    for folder in (run, run / "best"):
        config = json.loads((folder / "config.json").read_text())
        (row,) = (row for row in rows_of(run, "val") if row["step"] == config["step"])
        again = beit("evaluate", folder, "--data", data, "--json").result
        for name in ("loss", "top1") if task == "classify" else ("miou", "pixel_accuracy"):
            assert again[name] == pytest.approx(row[name], abs=1e-6), (folder, name)


def test_patience_stops_and_keeps_the_best(data: Path, tmp_path: Path) -> None:
    fields = {"optim__lr": 1e-9, "optim__steps": 40, "engine__evaluate_every": 2}
    outcome = beit(*classifying(tmp_path / "run", data, **fields), "--patience", 3)
    assert outcome.status == 0, outcome.err
    assert outcome.result["steps"] == 8  # the best is that of step 2, then three in vain
    assert "no better top1" in outcome.result["stopped_early"]
    assert outcome.result["best"]["step"] == 2


def test_few_labels_are_drawn_by_the_seed(data: Path, tmp_path: Path) -> None:
    for name, amount in (("share", "25%"), ("number", "2/class")):
        out = tmp_path / name
        outcome = beit(*classifying(out, data, data__labels=amount))
        assert outcome.status == 0, outcome.err
        assert json.loads((out / "source.json").read_text())["pictures"] == 6
    same = [sha256_of(tmp_path / name / "model.safetensors") for name in ("share", "number")]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__labels": "9/class"}, ["9/class", "8 pictures"]),
        ({"data__labels": "lots"}, ["lots", "10%"]),
        ({"mixing__mixup": 0.8, "optim__batch": 9}, ["optim.batch", "even"]),
        ({"encoder__heads": 3}, ["heads"]),
    ],
)
def test_refusals_before_anything_is_made(
    data: Path, tmp_path: Path, fields: dict[str, Any], words: list[str]
) -> None:
    outcome = beit(*classifying(tmp_path / "run", data, **fields))
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert all(word in outcome.complaint for word in words), outcome.complaint
    assert not (tmp_path / "run").exists()


def test_an_init_of_another_shape_is_refused(pretrained: Path, data: Path, tmp_path: Path) -> None:
    outcome = beit(*classifying(tmp_path / "run", data, pretrained, encoder__width=32))
    assert outcome.status == 2 and "width is 16, not 32" in outcome.complaint
    outcome = beit(*classifying(tmp_path / "run", data, tmp_path / "nothing"))
    assert outcome.status == 2 and "--init none" in outcome.complaint
    outcome = beit(*classifying(tmp_path / "run", data, pretrained / "tokenizer"))
    assert outcome.status == 2 and "tokenizer" in outcome.complaint
    assert not (tmp_path / "run").exists()


def test_resuming_from_another_init_is_refused(data: Path, learned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert beit(*classifying(run, data)).status == 0
    outcome = beit(*classifying(run, data, learned), "--resume")
    assert outcome.status == 2 and "began from none" in outcome.complaint


def test_a_model_that_predicts_no_class_is_refused(pretrained: Path, data: Path) -> None:
    outcome = beit("predict", pretrained, next(data.rglob("*.png")))
    assert outcome.status == 2 and "fine-tune it first" in outcome.complaint


def test_unknown_classes_are_refused(learned: Path, tmp_path: Path) -> None:
    other = coloured(tmp_path / "other", classes=("blue", "violet"))
    outcome = beit("evaluate", learned, "--data", other)
    assert outcome.status == 2 and "'violet'" in outcome.complaint
