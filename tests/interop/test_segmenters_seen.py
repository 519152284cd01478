"""How a segmenter sees pictures goes along in exports, and counts when they are read again."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import beit
from beit.commands.sharing.conversion import convert
from beit.commands.training.segment import settings_of
from beit.commands.using.finished import read_finished
from beit.errors import UserError
from beit.interop.onnx import metadata_of
from beit.nn.segmenter import Segmenter
from commands.fine_tuning_runs import SEGMENT, halves

PLACES = {"reference": "there.pth", "transformers": "there"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks count from 1, and 0 is nothing: ADE20K's way."""
    folder = halves(tmp_path_factory.mktemp("data") / "halves")
    for mask in folder.glob("annotations/*/*.png"):
        values = np.array(Image.open(mask))
        Image.fromarray(values + np.uint8(1)).save(mask)
    (folder / "palette.txt").write_text("1 2 3\n250 0 9\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "seg"
    changes = {
        **SEGMENT,
        **{"encoder.depth": 4, "encoder.image_size": [64, 64], "encoder.patch_size": [16, 16]},
        **{"encoder.preset": "plus", "decoder.kind": "upernet", "decoder.norm": "batch"},
        **{"optim.steps": 2, "views.short_side": 80, "inference.stride_share": 0.4},
        **{"data.reduce_zero_label": True},
    }
    beit.segment("digits", str(data), run, init="none", changes=changes)
    return run


@pytest.mark.parametrize("to", PLACES)
def test_an_export_is_measured_and_predicts_as_the_run_does(
    to: Any, run: Path, data: Path, tmp_path: Path
) -> None:
    there = tmp_path / PLACES[to]
    convert(run, there, to)
    ours, theirs = read_finished(run), read_finished(there)
    assert isinstance(ours.model, Segmenter) and isinstance(theirs.model, Segmenter)
    assert settings_of(theirs.model, theirs.facts) == settings_of(ours.model, ours.facts)
    assert theirs.facts["palette"] == [[1, 2, 3], [250, 0, 9]]
    found = [beit.evaluate(spec, str(data), quiet=True) for spec in (run, there)]
    assert found[0]["miou"] == pytest.approx(found[1]["miou"], abs=1e-6)
    convert(there, tmp_path / "back", "beit")
    described = [json.loads((f / "config.json").read_text()) for f in (run, tmp_path / "back")]
    for name in ("view", "palette", "reduce_zero_label"):
        assert described[0][name] == described[1][name]


def test_transformers_reads_the_folder_and_reduces_labels(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    told = convert(run, tmp_path / "there", "transformers")["notes"]
    assert any("squeezes whole pictures" in note for note in told)
    processor = transformers.BeitImageProcessor.from_pretrained(tmp_path / "there")
    assert processor.do_reduce_labels is True
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert theirs.shape == (1, 3, 64, 64)
    processor.save_pretrained(tmp_path / "again")  # what it does not know it keeps
    said = [
        json.loads((tmp_path / name / "preprocessor_config.json").read_text())
        for name in ("there", "again")
    ]
    assert said[0]["beit"]["view"]["short_side"] == 80 and said[1]["beit"] == said[0]["beit"]


def test_the_reference_finds_the_colours_where_it_looks(run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "there.pth", "reference")
    meta = torch.load(tmp_path / "there.pth", weights_only=True)["meta"]
    assert meta["PALETTE"] == [[1, 2, 3], [250, 0, 9]]


def test_a_graph_says_how_pictures_are_seen(run: Path, tmp_path: Path) -> None:
    metadata = convert(run, tmp_path / "there.pt2", "torch-export")["metadata"]
    assert json.loads(metadata["view"])["short_side"] == 80
    assert "view" not in metadata_of(beit.encoder("digits", image_size=16, patch_size=4))


BAD = [
    {"view": 3},
    {"view": {"short_side": "80"}},
    {"view": {"short_side": 10**9}},
    {"view": {"sort_side": 80}},
    {"view": {"scales": ["1"]}},
    {"palette": [[1, 2]]},
    {"palette": [[1, 2, 300], [1, 2, 3]]},
    {"reduce_zero_label": "no"},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_impossible_things_are_told_in_a_sentence(
    change: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    convert(run, tmp_path / "there", "transformers")
    convert(run, tmp_path / "ours", "beit")
    file = tmp_path / "there" / "preprocessor_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "beit": {**said["beit"], **change}}))
    config = tmp_path / "ours" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    for spec, name in ((file.parent, file), (config.parent, config)):
        with pytest.raises(UserError, match=f"{re.escape(str(name))} says impossible things"):
            read_finished(spec)


def test_colours_for_other_classes_are_left_out(run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "there", "transformers")
    file = tmp_path / "there" / "preprocessor_config.json"
    said = json.loads(file.read_text())
    said["beit"]["palette"] = [[1, 2, 3]]
    file.write_text(json.dumps(said))
    facts = read_finished(tmp_path / "there").facts
    assert "palette" not in facts and facts["view"]["short_side"] == 80


def test_of_other_people_s_segmenters_pictures_are_squeezed(
    run: Path, data: Path, tmp_path: Path
) -> None:
    convert(run, tmp_path / "there", "transformers")
    file = tmp_path / "there" / "preprocessor_config.json"
    said = json.loads(file.read_text())
    said.pop("beit", None)
    file.write_text(json.dumps(said))
    convert(tmp_path / "there", tmp_path / "new", "beit")
    for name in ("there", "new"):
        picture = next((data / "images" / "val").iterdir())
        beit.predict(tmp_path / name, picture, out=tmp_path / f"masks {name}", quiet=True)
        finished = read_finished(tmp_path / name)
        assert isinstance(finished.model, Segmenter)
        assert settings_of(finished.model, finished.facts).mode == "whole"
