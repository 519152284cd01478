"""Decoding into tensors gives what decoding into pictures gives, for sound files and for others."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from beit.data.decoding import decode as decoding
from beit.data.decoding.decode import BadPicture, decode, decode_pixels
from beit.data.decoding.jpeg import ordinary_size
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


@pytest.mark.parametrize("how", SAVED, ids=str)
def test_photos_are_not_decoded_by_pillow(
    how: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decode_pixels(_jpeg(**how))
    monkeypatch.setattr(decoding, "to_rgb", None)
    if "keep_rgb" not in how:
        assert torch.equal(decode_pixels(_jpeg(**how)), expected)


def test_ordinary_files_are_not_even_opened_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ordinary_size(_jpeg()) == (47, 61)
    monkeypatch.setattr(decoding, "_opened", None)
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


@pytest.mark.parametrize(
    "how",
    [{"progressive": True}, {"exif": Image.Exif()}, {"icc_profile": b"x"}, {"keep_rgb": True}],
)
def test_what_is_not_ordinary_is_left_alone(how: dict[str, object]) -> None:
    assert ordinary_size(_jpeg(**how)) is None


def test_no_cut_header_has_a_size() -> None:
    data = _jpeg()
    begun = data.index(b"\xff\xda")  # of the scan
    assert all(ordinary_size(data[:end]) is None for end in range(begun + 1))


def test_a_size_above_the_limit_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_decoded_jpeg", None)
    with pytest.raises(BadPicture, match="61 x 47 pixels, more than 2866"):
        decode_pixels(_jpeg(), pixel_limit=61 * 47 - 1)


def test_without_torchvisions_decoder_pillow_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise RuntimeError("torchvision was built without it")

    expected = decode_pixels(_jpeg())
    monkeypatch.setattr("torchvision.io.decode_jpeg", missing)
    assert torch.equal(decode_pixels(_jpeg()), expected)
