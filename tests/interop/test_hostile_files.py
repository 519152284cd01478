"""Malicious and damaged files through every entry: no effect, one sentence, exit status 2."""

from __future__ import annotations

import json
import pickle
import resource
from pathlib import Path

import pytest

from beit.cli import main
from interop.hostile_files import NAMES, hostile

ENTRIES = {
    "weights": ("file.pth", ["convert", "{file}", "{out}", "--to", "beit"]),
    "tokenizer": ("encoder.pkl", ["convert", "{file}", "{out}", "--to", "beit"]),
    "pretrain": (
        "encoder.pkl",
        ["pretrain", "digits", "--data", "digits", "--out", "{out}", "--tokenizer", "{file}"],
    ),
    "folder": ("hub/pytorch_model.bin", ["convert", "{folder}", "{out}", "--to", "beit"]),
    "safetensors": ("file.safetensors", ["convert", "{file}", "{out}", "--to", "beit"]),
}


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 50


@pytest.mark.parametrize("name", ["reduce", "exec", "stack_global"])
def test_they_would_do_harm_elsewhere(tmp_path: Path, name: str) -> None:
    sentinel = tmp_path / "sentinel"
    pickle.loads(hostile(name, sentinel))
    assert sentinel.exists()


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", NAMES)
def test_no_effect_one_sentence_status_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: str, name: str
) -> None:
    file, sentinel, out = tmp_path / ENTRIES[entry][0], tmp_path / "sentinel", tmp_path / "out"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(hostile(name, sentinel))
    (file.parent / "config.json").write_text(json.dumps({"model_type": "beit", "image_size": 32}))
    places = {"file": file, "folder": file.parent, "out": out}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = main([word.format(**places) for word in ENTRIES[entry][1]])
    told = capsys.readouterr().err.strip().splitlines()
    assert status == 2, told
    assert len(told) == 1 and len(told[0]) < 500, told
    assert str(tmp_path) in told[0]
    assert not sentinel.exists() and not out.exists()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # in kB
    assert grown < 600_000
