import contextlib
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, features
from PIL.GifImagePlugin import GifImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from beit.data.decoding.decode import (
    BadPicture,
    NoClasses,
    decode,
    decode_classes,
    decode_pixels,
    read_bytes,
    upright_size,
)
from oracles.picture_zoo import Specimen, bombs, chunk, grey, png, saved, scene, zoo

NO_AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
WITH_AVIF = pytest.param("AVIF", marks=NO_AVIF)


@pytest.mark.parametrize("specimen", zoo(), ids=lambda one: one.name)
def test_every_file_of_the_zoo_is_read_right_or_refused_by_name(specimen: Specimen) -> None:
    if specimen.pixels is None:
        with pytest.raises(BadPicture, match=specimen.reason or None) as refusal:
            decode(specimen.data)
        assert 0 < len(refusal.value.reason) < 140 and "\n" not in refusal.value.reason
        return
    image = decode(specimen.data)
    assert image.mode == "RGB"
    pixels = np.asarray(image).astype(int)
    assert pixels.shape == specimen.pixels.shape
    assert np.abs(pixels - specimen.pixels).max() <= specimen.tolerance


def test_the_zoo_is_large() -> None:
    names = [one.name for one in zoo() + bombs()]
    assert len(names) == len(set(names)) >= 40


@pytest.mark.parametrize(
    "name", ["png-16", "tiff-16", "tiff-12", "pgm-16", "tiff-float", "tiff-32"]
)
def test_deep_greys_keep_their_levels(name: str) -> None:
    data = next(one.data for one in zoo() if one.name == name)
    assert len(np.unique(np.asarray(decode(data)))) >= 250


def _upright(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """EXIF 2.3: where the first row and the first column of the stored picture belong."""
    turned = stored.transpose(1, 0, 2)
    return {
        1: stored,  # top, left
        2: stored[:, ::-1],  # top, right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[:, ::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[::-1],  # left, bottom
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", WITH_AVIF])
def test_the_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(scene())
    stored = np.asarray(decode(saved(image, kind)))
    turned = saved(image, kind, exif=exif)
    upright = np.asarray(decode(turned))
    assert np.array_equal(upright, _upright(stored, orientation))
    assert upright_size(turned) == upright.shape[:2]


def test_damaged_metadata_does_not_cost_the_picture() -> None:
    data = saved(Image.fromarray(scene()), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert np.array_equal(np.asarray(decode(data)), scene())


@pytest.mark.parametrize("bomb", bombs(), ids=lambda one: one.name)
def test_bombs_are_refused_before_they_go_off(
    bomb: Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(_: object) -> None:
        raise AssertionError("it was decoded")

    for kind in (ImageFile.ImageFile, WebPImageFile, TiffImageFile, GifImageFile):
        monkeypatch.setattr(kind, "load", boom)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadPicture, match="12000 x 12000 pixels, more than"):
        decode(bomb.data)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024  # KiB


def test_the_pixel_limit_is_a_limit_on_pixels() -> None:
    data = saved(Image.new("RGB", (30, 20)), "PNG")
    assert decode(data, pixel_limit=600).size == (30, 20)
    with pytest.raises(BadPicture, match="30 x 20 pixels, more than 599"):
        decode(data, pixel_limit=599)


def with_heif() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()


def test_a_telephone_s_picture_is_upright_once() -> None:
    """HEIF says itself how it is turned; the EXIF beside it does not count."""
    with_heif()
    exif = Image.Exif()
    exif[274] = 6
    data = saved(Image.fromarray(scene()), "HEIF", quality=95, exif=exif)
    pixels = np.asarray(decode(data)).astype(int)
    assert upright_size(data) == pixels.shape[:2] == scene().shape[:2]
    assert np.abs(pixels - scene()).max() < 12
    assert np.array_equal(decode_pixels(data).permute(1, 2, 0).numpy(), pixels)
    with pytest.raises(BadPicture, match="32 x 24 pixels, more than 10"):
        decode(data, pixel_limit=10)


def test_of_several_pictures_in_a_heif_the_first_is_read() -> None:
    with_heif()
    first, second = Image.fromarray(scene()), Image.new("RGB", (32, 24))
    data = saved(first, "HEIF", quality=95, save_all=True, append_images=[second])
    assert np.abs(np.asarray(decode(data)).astype(int) - scene()).max() < 12


@pytest.mark.parametrize("kind", ["HEIF", WITH_AVIF])
def test_damaged_pictures_of_newer_formats_are_refused(kind: str) -> None:
    if kind == "HEIF":
        with_heif()
    data = saved(Image.fromarray(scene()), kind)
    chance = np.random.default_rng(3)
    for length in np.linspace(1, len(data) - 1, 25).astype(int):
        with contextlib.suppress(BadPicture):
            assert decode(data[:length]).size == (32, 24)
    for place in chance.integers(0, len(data), 40):
        changed = bytearray(data)
        changed[place] ^= 1 << int(chance.integers(8))
        with contextlib.suppress(BadPicture):
            assert decode(bytes(changed)).mode == "RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_a_file_cut_anywhere_is_whole_or_refused(kind: str) -> None:
    """Never a picture with a grey rest: what is accepted has every pixel."""
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    whole = np.asarray(decode(data))
    for length in np.linspace(1, len(data) - 1, 60).astype(int):
        try:
            image = decode(data[:length])
        except BadPicture:
            continue
        assert np.array_equal(np.asarray(image), whole), f"{kind} cut at {length} of {len(data)}"


def test_another_librarys_leniency_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    half = next(one.data for one in zoo() if one.name == "half-JPEG")
    with pytest.raises(BadPicture, match="truncated"):
        decode(half)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_flipped_bytes_never_raise_anything_else() -> None:
    chance = np.random.default_rng(2)
    for specimen in zoo():
        for _ in range(6):
            data = bytearray(specimen.data)
            for place in chance.integers(0, max(1, len(data)), 3):
                if data:
                    data[place] = int(chance.integers(256))
            try:
                assert decode(bytes(data)).mode == "RGB"
            except BadPicture:
                continue


def test_eps_never_calls_an_interpreter(tmp_path: Path) -> None:
    marker = tmp_path / "called"
    for name in ("gs", "gswin64c"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {marker}\n")
        program.chmod(0o755)
    file = tmp_path / "photo.jpg"
    file.write_bytes(saved(Image.fromarray(scene()), "EPS"))
    program_text = (
        "import sys; from beit.data.decoding.decode import *\n"
        "try: decode(read_bytes(sys.argv[1].encode()))\n"
        "except BadPicture as error: print(error.reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program_text, str(file)],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("not a readable") and not marker.exists()


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (("pipe.jpg", "regular"), ("gone.jpg", "No such"), ("", "regular|direc")):
        with pytest.raises(BadPicture, match=reason):
            read_bytes(os.fsencode(tmp_path / name))


def test_a_16_bit_grey_png_of_one_value() -> None:
    data = png(2, 1, 16, 0, b"\x00\x80\x00\x80\x00")
    assert np.array_equal(np.asarray(decode(data)), grey(np.full((1, 2), 128, np.uint8)))


def _classes(height: int = 6, width: int = 9, most: int = 200) -> NDArray[np.uint8]:
    values = np.random.default_rng(3).integers(0, most, (height, width), dtype=np.uint8)
    values[0, 0] = most - 1
    return values


def _mask_file(values: NDArray[np.uint8], kind: str) -> bytes:
    image = Image.fromarray(values)
    if kind == "palette":  # its colours lead astray
        colours = np.random.default_rng(4).integers(0, 256, 768, dtype=np.uint8)
        image.putpalette(colours.tobytes())
    if kind == "16 bits":
        image = Image.fromarray(values.astype(np.uint16))
    if kind == "1 bit":
        image = Image.fromarray(values.astype(bool))
    return saved(image, "PNG")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["grey", "palette", "16 bits", "1 bit"])
def test_a_mask_is_what_is_stored_turned_like_a_picture(kind: str, orientation: int) -> None:
    values = _classes(most=2 if kind == "1 bit" else 200)
    file = _mask_file(values, kind)
    assert np.array_equal(decode_classes(file), values)
    exif = Image.Exif()
    exif[274] = orientation
    with Image.open(io.BytesIO(file)) as image:
        turned = decode_classes(saved(image, "PNG", exif=exif))
    assert turned.dtype == np.uint8
    assert np.array_equal(turned[..., None], _upright(values[..., None], orientation))


@pytest.mark.parametrize("colour", [0, 3], ids=["grey", "palette"])
@pytest.mark.parametrize("depth", [2, 4])
def test_masks_of_few_bits_are_not_stretched(depth: int, colour: int) -> None:
    values = list(range(2**depth))
    packed = sum(value << (depth * place) for place, value in enumerate(reversed(values)))
    row = b"\x00" + packed.to_bytes(len(values) * depth // 8, "big")
    more = (chunk(b"PLTE", bytes(range(3 * len(values)))),) if colour == 3 else ()
    mask = decode_classes(png(len(values), 1, depth, colour, row, *more))
    assert mask.tolist() == [values]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_mask_of_colours_is_refused_as_such(mode: str) -> None:
    with pytest.raises(NoClasses, match=rf"colours \({mode}\)"):
        decode_classes(saved(Image.fromarray(scene()).convert(mode), "PNG"))


def test_a_mask_of_large_numbers_or_that_is_no_png_is_refused() -> None:
    deep = np.array([[3, 256]], np.uint16)
    with pytest.raises(NoClasses, match="up to 256"):
        decode_classes(saved(Image.fromarray(deep), "PNG"))
    with pytest.raises(BadPicture, match="not a readable PNG"):
        decode_classes(saved(Image.fromarray(_classes()), "JPEG"))
    with pytest.raises(BadPicture, match="truncated"):
        decode_classes(saved(Image.fromarray(_classes(40, 40)), "PNG")[:-200])
    with pytest.raises(BadPicture, match="empty"):
        upright_size(b"")
