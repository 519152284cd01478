"""Which files are pictures: by their names when a folder is listed, by their content when read.

AVIF comes with most builds of Pillow; HEIF, the format of telephones, with the package pillow-heif
(the extra `heif`). Where they are missing, such files are passed over and counted.
"""

import importlib.util
import os
from collections.abc import Mapping
from functools import cache

# Pillow does not register these by itself.
from PIL import AvifImagePlugin, TiffImagePlugin, WebPImagePlugin, features

_AVIF = (b".avif", b".avifs")
_HEIF = (b".heic", b".heif", b".hif")
_HAS_AVIF = bool(features.check("avif"))
_HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None

_FORMATS = (
    *("JPEG", "PNG", WebPImagePlugin.WebPImageFile.format, TiffImagePlugin.TiffImageFile.format),
    *("BMP", "GIF", "PPM"),
    *([AvifImagePlugin.AvifImageFile.format] if _HAS_AVIF else []),
)
SUFFIXES = frozenset(
    (
        *(b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".tif", b".tiff"),
        *(b".bmp", b".gif", b".ppm", b".pgm", b".pbm", b".pnm"),
        *(_AVIF if _HAS_AVIF else ()),
        *(_HEIF if _HAS_HEIF else ()),
    )
)
# Pictures to people, and not to us.
FOREIGN_SUFFIXES = (
    frozenset(
        (
            *(*_AVIF, *_HEIF, b".jxl", b".jp2", b".j2k", b".jpx", b".psd", b".svg", b".tga"),
            *(b".dng", b".cr2", b".cr3", b".nef", b".arw", b".orf", b".rw2", b".raf", b".pef"),
            b".exr",
        )
    )
    - SUFFIXES
)
_FAMILY_OF_HEIF = b"ftyp"  # at the fifth byte


def readable() -> list[str]:
    """The endings that count as pictures here, for what was listed to be known by."""
    return sorted(suffix.decode() for suffix in SUFFIXES)


def picture_suffix(name: bytes) -> bool:
    """Whether a visible file's name ends as a picture's does."""
    return not name.startswith(b".") and os.path.splitext(name)[1].lower() in SUFFIXES


def foreign_suffix(name: bytes) -> str | None:
    """The ending of a visible file that is a picture for others, in small letters."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix.decode() if suffix in FOREIGN_SUFFIXES and not name.startswith(b".") else None


def counted(endings: Mapping[str, int]) -> str:
    """How many files there are of each ending, in words."""
    return ", ".join(f"{count:,} {ending}" for ending, count in sorted(endings.items()))


def way_out(endings: Mapping[str, int]) -> str:
    """What to do about files of these endings."""
    heif = {".heic", ".heif", ".hif"} & set(endings)
    return "convert them to JPEG or PNG" + (', or pip install "beit[heif]"' if heif else "")


def formats_for(data: bytes) -> tuple[str, ...]:
    """The formats that these bytes may have, by Pillow's names."""
    if _HAS_HEIF and data[4:8] == _FAMILY_OF_HEIF:
        return (*_FORMATS, _heif())
    return _FORMATS


@cache
def _heif() -> str:
    """Pillow's name of the format, after it was told of it: importing the package takes a while."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    pillow_heif.options.DECODE_THREADS = 1  # loader processes read beside one another already
    return "HEIF"
