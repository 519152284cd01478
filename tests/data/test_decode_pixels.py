"""Decoding into tensors gives what decoding into pictures gives, for sound files and for others."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from beit.data import decode as decoding
from beit.data.decode import BadPicture, decode, decode_pixels
from oracles.picture_zoo import Specimen, bombs, scene, zoo

SAVED: tuple[dict[str, object], ...] = (
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"subsampling": 1},
    {"restart_marker_rows": 1},
    {"keep_rgb": True},
    {"quality": 20, "optimize": True},
)


def _jpeg(**how: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene(47, 61)).save(buffer, "JPEG", **how)
    return buffer.getvalue()


def _either(data: bytes) -> list[object]:
    """(pixels or reason) by `decode`, then by `decode_pixels`."""
    found: list[object] = []
    for read in (lambda: np.array(decode(data)), lambda: _rows(decode_pixels(data))):
        try:
            found.append(read().tolist())
        except BadPicture as error:
            found.append(error.reason)
    return found


def _rows(pixels: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3
    return pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("specimen", zoo() + bombs(), ids=lambda one: one.name)
def test_the_zoo_is_read_alike(specimen: Specimen) -> None:
    picture, pixels = _either(specimen.data)
    assert picture == pixels


@pytest.mark.parametrize("how", SAVED, ids=str)
def test_every_kind_of_jpeg_is_read_alike(how: dict[str, object]) -> None:
    picture, pixels = _either(_jpeg(**how))
    assert isinstance(picture, list) and picture == pixels


@pytest.mark.parametrize("orientation", range(10))
def test_turned_photos_are_turned_alike(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture, pixels = _either(_jpeg(exif=exif))
    assert isinstance(picture, list) and picture == pixels
    assert len(picture) == (61 if 5 <= orientation <= 8 else 47)


def test_ordinary_files_are_not_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "to_rgb", None)
    pixels = decode_pixels(_jpeg())
    assert pixels.stride() == (1, 3 * 61, 3)  # as `make_views` wants it


def test_damaged_jpeg_is_read_or_refused_alike(capfd: pytest.CaptureFixture[str]) -> None:
    """Cut, filled and with bytes changed: whatever one makes of it, the other does."""
    chance = random.Random(0)
    refused = 0
    for trial in range(300):
        data = bytearray(_jpeg(**SAVED[trial % len(SAVED)]))
        if trial % 3 == 0:
            del data[chance.randrange(len(data)) :]
        else:
            for _ in range(chance.randrange(1, 5)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        picture, pixels = _either(bytes(data))
        assert picture == pixels, trial
        refused += isinstance(picture, str)
    assert 60 < refused < 250
    capfd.readouterr()  # libjpeg tells what it mended


def test_without_torchvisions_decoder_pillow_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise RuntimeError("torchvision was built without it")

    expected = decode_pixels(_jpeg())
    monkeypatch.setattr("torchvision.io.decode_jpeg", missing)
    assert torch.equal(decode_pixels(_jpeg()), expected)
