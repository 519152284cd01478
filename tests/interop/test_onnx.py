"""Graphs for other runtimes: the same numbers for any number of pictures, and what to feed them."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from beit.cli import main
from beit.commands.assembly.saved_models import save_classifier
from beit.commands.sharing.graphs import real_pictures
from beit.errors import UserError
from beit.interop import onnx
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import DecoderConfig
from beit.nn.encoder import Encoder
from beit.nn.heads import ClassifierHead
from beit.nn.segmenter import build_segmenter
from interop.interop_models import randomise

LABELS = ("zero", "one", "two")


def _encoder(positions: str = "absolute", depth: int = 1, **more: Any) -> Encoder:
    config = EncoderConfig(
        image_size=(16, 24),
        patch_size=(8, 8),
        width=24,
        depth=depth,
        heads=4,
        absolute_positions=positions == "absolute",
        relative_positions="none" if positions == "absolute" else positions,  # type: ignore[arg-type]
        **more,
    )
    encoder = Encoder(config).eval()
    randomise(encoder)
    return encoder


def _classifier() -> Classifier:
    model = Classifier(_encoder(), ClassifierHead(24, 3, initial_factor=1.0), LABELS).eval()
    randomise(model)
    return model


def _pictures(count: int = 5) -> Tensor:
    return real_pictures("digits", (16, 24), count)


def test_pictures_are_real_and_normalised() -> None:
    pictures = _pictures()
    assert pictures.shape == (5, 3, 16, 24)
    assert -2.2 < float(pictures.min()) < -1 and 2 < float(pictures.max()) < 2.7
    assert len({tuple(picture.flatten().tolist()) for picture in pictures}) == 5
    with pytest.raises(UserError):
        real_pictures("no such folder", (16, 24))


def test_a_classifier_becomes_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line, and read by onnxruntime as somebody else would."""
    runtime = pytest.importorskip("onnxruntime")
    model = _classifier()
    save_classifier(tmp_path / "ours", model, {})
    words = ["convert", str(tmp_path / "ours"), str(tmp_path / "there.onnx"), "--to", "onnx"]
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr()
    assert "onnxruntime gives the same within" in told.err
    assert json.loads(told.out.splitlines()[-1])["difference"] < 1e-4
    session = runtime.InferenceSession(
        str(tmp_path / "there.onnx"), providers=["CPUExecutionProvider"]
    )
    for count in (1, 2, 5):
        images = _pictures(count)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(images), atol=1e-4, rtol=0)
    said = session.get_modelmeta().custom_metadata_map
    read = {
        name: json.loads(value) for name, value in said.items() if name in onnx.metadata_of(model)
    }
    assert read["labels"] == list(LABELS) and read["image_size"] == [16, 24]
    assert read["mean"] == [0.485, 0.456, 0.406] and read["kind"] == "classifier"
    assert read["weights_sha256"] == onnx.weights_sha256(model)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["absolute", "shared", "per-layer"])
def test_every_encoder_becomes_onnx(positions: str) -> None:
    pytest.importorskip("onnxruntime")
    encoder = _encoder(positions, depth=2, layer_scale=0.1, drop_path=0.1, checkpointing=True)
    graph = onnx.to_onnx(encoder, _pictures())
    assert graph.difference < 1e-4
    assert json.loads(graph.metadata["output"])[0] == "tokens"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pup", "upernet"])
def test_segmenters_become_onnx(kind: str) -> None:
    pytest.importorskip("onnxruntime")
    graph = onnx.to_onnx(_segmenter(kind), _pictures())
    assert graph.difference < 1e-4


def _segmenter(kind: str) -> Any:
    layers = (0, 1) if kind == "pup" else (0, 0, 1, 1)
    config = DecoderConfig(kind=kind, classes=5, channels=8, layers=layers, auxiliary_channels=8)
    segmenter = build_segmenter(_encoder(depth=2), config).eval()
    randomise(segmenter)
    return segmenter


@pytest.mark.parametrize("kind", ["encoder", pytest.param("segmenter", marks=pytest.mark.slow)])
def test_torch_export_runs_without_us_and_holds_no_pickle(kind: str) -> None:
    model: Any = _encoder("shared") if kind == "encoder" else _segmenter("upernet")
    graph = onnx.to_torch_export(model, _pictures())
    assert graph.difference < 1e-4
    said = {onnx.EXTRA_FILE: ""}
    again = torch.export.load(io.BytesIO(graph.data), extra_files=said).module()
    for count in (1, 3):
        images = _pictures(count)
        with torch.no_grad():
            output = model(images)
            expected = output.tokens if kind == "encoder" else output.logits
            torch.testing.assert_close(again(images), expected, atol=1e-5, rtol=0)
    assert json.loads(said[onnx.EXTRA_FILE])["kind"] == json.dumps(kind)
    with zipfile.ZipFile(io.BytesIO(graph.data)) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            assert not (data[:1] == b"\x80" and data.endswith(b".")), name  # a pickle
            assert not data.startswith(b"PK\x03\x04"), name  # torch's own container of one


def test_a_graph_that_computes_otherwise_is_not_handed_out() -> None:
    model, images = _classifier(), _pictures()
    with pytest.raises(RuntimeError, match="differs by"):
        onnx._tried(b"", lambda batch: model(batch) + 1e-3, model, images, {})


def test_weights_and_names_make_the_digest() -> None:
    model = _classifier()
    before = onnx.weights_sha256(model)
    assert before == onnx.weights_sha256(_classifier())
    with torch.no_grad():
        model.head.output.bias[0] += 1e-3
    assert onnx.weights_sha256(model) != before


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed.*beit\[onnx\]"):
        onnx.to_onnx(_encoder(), _pictures())


def test_a_model_too_large_for_one_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "LARGEST", 100)
    with pytest.raises(UserError, match="2 GB at most"):
        onnx.to_onnx(_encoder(), _pictures())
