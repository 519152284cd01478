"""DALL-E's files: the same codes, the same decoder, nothing executed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import beit
from beit.cli import main
from beit.errors import UserError
from beit.interop.dalle import is_dalle, read_dalle
from beit.nn.masked_image_model import MaskedImageModel
from beit.tokenizer import storage
from beit.tokenizer.dvae import DiscreteVAE, map_pixels
from beit.tokenizer.reading import Precision, TokenReader, agreement
from interop.dalle_modules import centre, package, save_models


def _blotches(count: int, side: int) -> torch.Tensor:
    """Plain colours a code's place: what a random encoder tells apart, unlike noise."""
    return (
        torch.rand(count, 3, side // 8, side // 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    )


def _same(model: DiscreteVAE, encoder: nn.Module, decoder: nn.Module, side: int) -> None:
    images = _blotches(16, side)
    with torch.no_grad():
        logits = encoder(map_pixels(images))
        torch.testing.assert_close(model.logits(images), logits, atol=1e-5, rtol=1e-5)
        codes = logits.argmax(1)
        assert len(codes.unique()) > 3
        assert torch.equal(model.codes(images), codes)
        one_hot = nn.functional.one_hot(codes, model.vocabulary).permute(0, 3, 1, 2).float()
        outputs = decoder(one_hot)
    torch.testing.assert_close(model.decode(one_hot), outputs, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode_codes(codes), outputs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "old"])
def test_both_containers_give_the_same_codes(tmp_path: Path, archive: bool) -> None:
    encoder, decoder = save_models(tmp_path, archive=archive)
    read = read_dalle(tmp_path / "encoder.pkl")
    assert not read.notes
    assert read.model.config.likelihood == "logit-laplace"
    _same(read.model, encoder, decoder, 32)


def test_the_package_s_own_models(tmp_path: Path) -> None:
    dall_e = package()
    if dall_e is None:
        pytest.skip("no DALL-E package; `pip install --no-deps DALL-E attrs` makes one")
    torch.manual_seed(0)
    encoder = dall_e.Encoder(n_hid=64, vocab_size=512).eval()
    decoder = dall_e.Decoder(n_hid=64, vocab_size=512).eval()
    centre(encoder)
    torch.save(encoder, tmp_path / "encoder.pkl")
    torch.save(decoder, tmp_path / "decoder.pkl")
    read = read_dalle(tmp_path / "encoder.pkl")
    assert read.model.config.encoder_widths == (64, 128, 256, 512)
    _same(read.model, encoder, decoder, 32)


def test_an_encoder_alone_gives_codes_and_says_what_it_lacks(tmp_path: Path) -> None:
    encoder, _ = save_models(tmp_path)
    (tmp_path / "decoder.pkl").unlink()
    read = read_dalle(tmp_path / "encoder.pkl")
    assert "grey" in read.notes[0]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(read.model.codes(images), encoder(map_pixels(images)).argmax(1))
        assert (read.model.reconstruct(images) - 0.5).abs().max() < 1e-6


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "old"])
def test_they_are_known_by_the_class_they_name(tmp_path: Path, archive: bool) -> None:
    save_models(tmp_path, archive=archive)
    weights = {"conv.w": torch.ones(3), "step": 7}
    torch.save(weights, tmp_path / "w.pkl", _use_new_zipfile_serialization=archive)
    for name in ("encoder.pkl", "decoder.pkl"):
        assert is_dalle((tmp_path / name).rename(tmp_path / f"{name}.pth"))
    assert not is_dalle(tmp_path / "w.pkl") and not is_dalle(tmp_path)


def test_files_that_were_swapped_are_told_apart(tmp_path: Path) -> None:
    save_models(tmp_path)
    with pytest.raises(UserError, match=r"dall_e\.decoder\.Decoder.*is wanted"):
        read_dalle(tmp_path / "decoder.pkl")


def test_wget_s_log_is_recognised(tmp_path: Path) -> None:
    log = tmp_path / "encoder.pkl"
    log.write_text(
        "--2021-06-20 10:00:00--  https://cdn.example.org/dall-e/encoder.pkl\n"
        "Resolving cdn.example.org... 10.0.0.1\nConnecting... connected.\n"
    )
    with pytest.raises(UserError, match=r"wget's log.*wget -O"):
        read_dalle(log)


def test_pretrain_takes_it_as_its_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_models(tmp_path)
    run, given = tmp_path / "run", tmp_path / "encoder.pkl"
    words = ["pretrain", "digits", "--data", "digits", "--out", str(run)]
    few = ["--optim.steps", "2", "--optim.batch", "8", "--optim.warmup_steps", "1"]
    assert main([*words, "--tokenizer", str(given), *few, "--device", "cpu"]) == 0, (
        capsys.readouterr().err
    )
    kept = beit.load(run / "tokenizer")
    assert isinstance(kept, DiscreteVAE)
    assert storage.fingerprint(kept) == storage.fingerprint(read_dalle(given).model)
    model = beit.load(run)
    assert isinstance(model, MaskedImageModel)
    assert model.head.output.out_features == 16


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_says_how_many_codes_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: Precision
) -> None:
    """In the run that asked for it, on real pictures, and against the original's own codes."""
    encoder, _ = save_models(tmp_path)
    read = read_dalle(tmp_path / "encoder.pkl").model
    images = _blotches(16, 32)
    with torch.no_grad():
        exact = encoder(map_pixels(images)).argmax(1)
    found = agreement(TokenReader(read, precision).codes(images), exact)
    assert 0.9 < found.share <= 1
    words = ["pretrain", "digits", "--data", "digits", "--out", str(tmp_path / "run")]
    words += ["--tokenizer", str(tmp_path / "encoder.pkl"), "--tokens.precision", precision]
    few = ["--optim.steps", "1", "--optim.batch", "8", "--optim.warmup_steps", "0"]
    assert main([*words, *few, "--device", "cpu"]) == 0
    said = re.search(
        rf"tokens in {precision}: ([\d,]+) of ([\d,]+) codes are equal", capsys.readouterr().err
    )
    assert said is not None
    equal, codes = (int(number.replace(",", "")) for number in said.groups())
    assert 0.8 * codes < equal <= codes
