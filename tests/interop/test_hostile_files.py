"""Malicious and damaged files through every entry: no effect, one sentence, exit status 2."""

from __future__ import annotations

import json
import pickle
import resource
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beit.cli import main
from beit.interop import hub
from beit.interop.pickles import Name, Refused, read_pickle
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
    "init": (
        "file.pth",
        ["classify", "digits", "--data", "digits", "--out", "{out}", "--init", "{file}"],
    ),
    "evaluate": ("file.pt", ["evaluate", "{file}", "--data", "digits"]),
    "a page of timm's": (
        "page/pytorch_model.bin",
        ["convert", "{folder}", "{out}", "--to", "beit"],
    ),
    "a file beside timm's config": (
        "page/file.pth",
        ["convert", "{file}", "{out}", "--to", "beit"],
    ),
    "the hub": ("hub/model.safetensors", ["convert", "hf://them/model", "{out}", "--to", "beit"]),
    "a pickle on the hub": (
        "hub/pytorch_model.bin",
        ["convert", "hf://them/model", "{out}", "--to", "beit"],
    ),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "page": {
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
}


def _hub_holds(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The hub's client finds everything in one folder, whatever it is asked for."""
    client = SimpleNamespace(
        snapshot_download=lambda name, **how: str(folder),
        constants=SimpleNamespace(HF_HUB_OFFLINE=True, ENDPOINT=""),
    )
    monkeypatch.setattr(hub, "require_hub", lambda: client)


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
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    entry: str,
    name: str,
) -> None:
    _hub_holds(monkeypatch, tmp_path / "hub")
    file, sentinel, out = tmp_path / ENTRIES[entry][0], tmp_path / "sentinel", tmp_path / "out"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(hostile(name, sentinel))
    config = CONFIGS.get(file.parent.name, {"model_type": "beit", "image_size": 32})
    (file.parent / "config.json").write_text(json.dumps(config))
    places = {"file": file, "folder": file.parent, "out": out}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = main([word.format(**places) for word in ENTRIES[entry][1]])
    told = capsys.readouterr().err.strip().splitlines()
    assert status == 2, told
    assert len(told) == 1 and len(told[0]) < 500, told
    assert str(tmp_path) in told[0] or "hf://them/model" in told[0]
    assert not sentinel.exists() and not out.exists()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # in kB
    assert grown < 600_000


@pytest.mark.parametrize("name", ["file.onnx", "file.pt2"])
def test_graphs_are_written_and_never_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    sentinel = tmp_path / "sentinel"
    (tmp_path / name).write_bytes(hostile("reduce saved by torch", sentinel))
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out"), "--to", "beit"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "written and never read" in told[0]
    assert not sentinel.exists() and not (tmp_path / "out").exists()


def test_a_name_that_is_not_on_the_list_is_refused_before_it_is_kept() -> None:
    listed = {Name("collections", "OrderedDict")}
    assert read_pickle(BytesIO(pickle.dumps(OrderedDict())), listed).maker in listed
    for other in (len, Path):
        with pytest.raises(Refused, match="asks for .*, which is not on the list"):
            read_pickle(BytesIO(pickle.dumps(other)), listed)


def test_an_instruction_that_no_module_needs_is_refused() -> None:
    doubled = b"\x80\x02}2."  # a dictionary, and the same once more: DUP
    assert pickle.loads(doubled) == {}
    with pytest.raises(Refused, match="its pickle uses DUP, which no saved module needs"):
        read_pickle(BytesIO(doubled), None)
