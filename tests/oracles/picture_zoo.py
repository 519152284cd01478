"""Files of every kind, made on the spot, each with the picture it must become or why not."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Specimen:
    name: str
    data: bytes
    pixels: Pixels | None = None  # what it must become, +- the tolerance
    reason: str = ""  # or a part of the refusal
    tolerance: int = 2


def scene(height: int = 24, width: int = 32) -> Pixels:
    """A smooth picture without symmetry, gentle enough for lossy formats."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red, green = 40 + 180 * x / width, 30 + 190 * y / height
    blue = 200 - 150 * (x / width) * (y / height)
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def grey(pixels: Pixels) -> Pixels:
    return np.repeat(pixels[..., None], 3, -1)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write; `rows` with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def transparent(kind: bytes) -> bytes:
    return chunk(b"tRNS", kind)


def on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None] / 255
    return (pixels * share + 255 * (1 - share)).round().astype(np.uint8)


def ramp16() -> NDArray[np.uint16]:
    """All of 16 bits, 256 columns."""
    return np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))


def ramp8() -> Pixels:
    return grey(np.tile(np.arange(256, dtype=np.uint8), (4, 1)))


def zoo() -> list[Specimen]:
    return [*_colour(), *_greys(), *_alpha(), *_deep(), *_several(), *_foreign(), *_broken()]


def _colour() -> list[Specimen]:
    pixels = scene()
    image = Image.fromarray(pixels)
    cmyk = Image.merge("CMYK", [*Image.fromarray(255 - pixels).split(), Image.new("L", (32, 24))])
    few = image.quantize(64, dither=Image.Dither.NONE)
    quantised = np.asarray(few.convert("RGB"))
    full = {"quality": 100, "subsampling": 0}  # and still the encoder is off by up to 3
    return [
        Specimen("png", saved(image, "PNG"), pixels),
        Specimen("jpeg", saved(image, "JPEG", **full), pixels, tolerance=3),
        Specimen(
            "jpeg-progressive", saved(image, "JPEG", progressive=True, **full), pixels, tolerance=3
        ),
        Specimen("jpeg-cmyk", saved(cmyk, "JPEG", **full), pixels),
        Specimen("webp-lossless", saved(image, "WEBP", lossless=True), pixels),
        Specimen("tiff", saved(image, "TIFF"), pixels),
        Specimen("tiff-lzw", saved(image, "TIFF", compression="tiff_lzw"), pixels),
        Specimen("tiff-deflate", saved(image, "TIFF", compression="tiff_adobe_deflate"), pixels),
        Specimen("tiff-cmyk", saved(cmyk, "TIFF"), pixels),
        Specimen("bmp", saved(image, "BMP"), pixels),
        Specimen("ppm", saved(image, "PPM"), pixels),
        Specimen("png-palette", saved(few, "PNG"), quantised),
        Specimen("bmp-palette", saved(few, "BMP"), quantised),
        Specimen("gif", saved(few, "GIF"), quantised),
    ]


def _greys() -> list[Specimen]:
    pixels = scene()[..., 0]
    image = Image.fromarray(pixels)
    black = pixels > 120
    bits = Image.fromarray(black)
    two = grey((black * 255).astype(np.uint8))
    return [
        Specimen("jpeg-grey", saved(image, "JPEG", quality=100), grey(pixels)),
        Specimen("png-grey", saved(image, "PNG"), grey(pixels)),
        Specimen("pgm", saved(image, "PPM"), grey(pixels)),
        Specimen("png-1-bit", saved(bits, "PNG"), two),
        Specimen("bmp-1-bit", saved(bits, "BMP"), two),
        Specimen("pbm", saved(bits, "PPM"), two),
        Specimen("tiff-fax", saved(bits, "TIFF", compression="group4"), two),
    ]


def _alpha() -> list[Specimen]:
    pixels = scene()
    alpha = scene()[..., 1]
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    la = Image.fromarray(np.dstack([pixels[..., 0], alpha]), "LA")
    clear = Image.fromarray(pixels).quantize(8, dither=Image.Dither.NONE)
    holes = np.asarray(clear) == 3
    punched = np.asarray(clear.convert("RGB")).copy()
    punched[holes] = 255
    row = bytes([0, 10, 20, 30, 200])  # filter byte, then four greys
    rgb_row = bytes([0, 1, 2, 3, 4, 5, 6])
    return [
        Specimen("png-rgba", saved(rgba, "PNG"), on_white(pixels, alpha)),
        Specimen("webp-rgba", saved(rgba, "WEBP", lossless=True), on_white(pixels, alpha)),
        Specimen("tiff-rgba", saved(rgba, "TIFF"), on_white(pixels, alpha)),
        Specimen("png-la", saved(la, "PNG"), on_white(grey(pixels[..., 0]), alpha)),
        Specimen("png-palette-transparent", saved(clear, "PNG", transparency=3), punched),
        Specimen("gif-transparent", saved(clear, "GIF", transparency=3), punched),
        Specimen(
            "png-grey-key",
            png(4, 1, 8, 0, row, transparent(b"\x00\x14")),
            grey(np.array([[10, 255, 30, 200]], np.uint8)),
        ),
        Specimen(
            "png-rgb-key",
            png(2, 1, 8, 2, rgb_row, transparent(b"\x00\x01\x00\x02\x00\x03")),
            np.array([[[255, 255, 255], [4, 5, 6]]], np.uint8),
        ),
    ]


def _deep() -> list[Specimen]:
    ramp = ramp16()
    unit = (ramp / 65535).astype(np.float32)
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in ramp)
    rgb_rows = b"".join(
        b"\x00" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in ramp
    )
    return [
        Specimen("png-16", png(256, 4, 16, 0, rows), ramp8()),
        Specimen("png-16-rgb", png(256, 4, 16, 2, rgb_rows), ramp8()),
        Specimen("tiff-16", saved(Image.fromarray(ramp), "TIFF"), ramp8()),
        Specimen(
            "tiff-16-big-endian", _tiff(256, 4, 16, ramp.astype(">u2").tobytes(), ">"), ramp8()
        ),
        Specimen("tiff-12", _tiff(256, 4, 12, _packed12(ramp), "<"), ramp8()),
        Specimen("pgm-16", b"P5 256 4 65535\n" + ramp.astype(">u2").tobytes(), ramp8()),
        Specimen("tiff-float", saved(Image.fromarray(unit), "TIFF"), ramp8()),
        Specimen("tiff-float-wide", saved(Image.fromarray(unit * 5000 - 1000), "TIFF"), ramp8()),
        Specimen(
            "tiff-32", saved(Image.fromarray(ramp.astype(np.int32) * 1000 - 7), "TIFF"), ramp8()
        ),
        Specimen(
            "tiff-not-a-number",
            saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
            reason="undefined pixel values",
        ),
    ]


def _tiff(width: int, height: int, bits: int, data: bytes, order: str) -> bytes:
    """A grey TIFF by hand; order is "<" or ">"."""

    def short(value: int) -> bytes:
        return struct.pack(order + "HH", value, 0)

    def long(value: int) -> bytes:
        return struct.pack(order + "I", value)

    tags = [
        (256, 3, short(width)),
        (257, 3, short(height)),
        (258, 3, short(bits)),
        (259, 3, short(1)),
        (262, 3, short(1)),
        (273, 4, long(8)),
        (277, 3, short(1)),
        (278, 3, short(height)),
        (279, 4, long(len(data))),
    ]
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, 1) + value for tag, kind, value in tags
    )
    mark = {"<": b"II\x2a\x00", ">": b"MM\x00\x2a"}[order]
    directory = struct.pack(order + "H", len(tags)) + entries + long(0)
    return mark + long(8 + len(data)) + data + directory


def _packed12(ramp: NDArray[np.uint16]) -> bytes:
    """Two values of 12 bits in three bytes, the high bits first."""
    values = (ramp // 16).astype(np.uint32).reshape(-1, 2)
    both = (values[:, 0] << 12) | values[:, 1]
    return b"".join(int(pair).to_bytes(3, "big") for pair in both)


def _several() -> list[Specimen]:
    first, second = Image.fromarray(scene()), Image.fromarray(255 - scene())
    more: dict[str, Any] = {"save_all": True, "append_images": [second]}
    full = {"quality": 100, "subsampling": 0}
    return [
        Specimen("gif-animated", saved(first, "GIF", **more), reason="animated"),
        Specimen("png-animated", saved(first, "PNG", **more), reason="animated"),
        Specimen("webp-animated", saved(first, "WEBP", **more), reason="animated"),
        Specimen("tiff-pages", saved(first, "TIFF", **more), reason="several pages"),
        Specimen("mpo", saved(first, "MPO", **full, **more), scene(), tolerance=3),
    ]


def _foreign() -> list[Specimen]:
    image = Image.fromarray(scene())
    foreign = "not a readable"
    return [
        Specimen("eps", saved(image, "EPS"), reason=foreign),
        Specimen("pdf", saved(image, "PDF"), reason=foreign),
        Specimen("ico", saved(image, "ICO"), reason=foreign),
        Specimen("tga", saved(image, "TGA"), reason=foreign),
        Specimen("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", reason=foreign),
        Specimen("html", b"<html><img src=x onerror=alert(1)></html>", reason=foreign),
        Specimen("pickle", b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.", reason=foreign),
        Specimen("zip", b"PK\x03\x04" + bytes(60), reason=foreign),
        Specimen("noise", bytes(range(256)), reason=foreign),
        Specimen("empty", b"", reason="empty"),
        Specimen("tiff-lab", saved(_lab(), "TIFF"), reason="colour space LAB"),
    ]


def _lab() -> Image.Image:
    return Image.merge("LAB", Image.fromarray(scene()).split())


def _broken() -> list[Specimen]:
    # Enough detail that half the bytes cannot hold all of the picture.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    whole = {kind: saved(image, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM")}
    whole["GIF"] = saved(image.quantize(256), "GIF")
    halves = [
        Specimen(f"half-{kind}", data[: len(data) // 2], reason="") for kind, data in whole.items()
    ]
    spoiled = bytearray(whole["PNG"])
    spoiled[len(spoiled) // 2] ^= 0xFF
    return [*halves, Specimen("png-spoiled", bytes(spoiled))]


def bombs() -> list[Specimen]:
    """Small files that claim more than our 64 Mpx, but less than the 179 Mpx Pillow refuses."""
    side = 12_000
    jpeg = bytearray(saved(Image.new("RGB", (16, 16)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    gif = b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\x00\x00" + bytes(6)
    gif += b"," + struct.pack("<HHHH", 0, 0, side, side) + b"\x00\x02\x02\x44\x01\x00;"
    bmp = bytearray(saved(Image.new("RGB", (16, 16)), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    tiff = saved(Image.new("1", (side, side)), "TIFF", compression="group4")
    webp = bytearray(saved(Image.new("RGB", (16, 16)), "WEBP", lossless=True))
    sides = webp.index(b"VP8L") + 9  # 14 bits of width - 1, then 14 of height - 1
    webp[sides : sides + 4] = struct.pack("<I", (side - 1) | (side - 1) << 14)
    one = png(side, side, 1, 0, (b"\x00" + bytes(side // 8)) * side)
    return [
        Specimen("bomb-png", one),
        Specimen("bomb-jpeg", bytes(jpeg)),
        Specimen("bomb-gif", gif),
        Specimen("bomb-bmp", bytes(bmp)),
        Specimen("bomb-tiff", tiff),
        Specimen("bomb-webp", bytes(webp)),
        Specimen("bomb-ppm", b"P5 12000 12000 255\n" + bytes(16)),
    ]
