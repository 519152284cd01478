"""The one way a file becomes a picture.

Every source reads through `decode` or `decode_pixels`, which give the same, so that a rule holds
everywhere or nowhere:

* the format is taken from the content and must be on the allow-list, whatever the name says;
* the pixel limit is checked in the header, before anything is decoded;
* the EXIF orientation is applied (HEIF has its own); colour profiles are ignored;
* 16-bit and float greys are scaled to 8 bits, never clipped;
* transparency is composited on white;
* animations and files of several pages are refused, as are truncated files.

Departure: what a data set keeps as arrays (digits, CIFAR, MNIST and their kin of torchvision's) has
no files; of these rules it meets that on modes alone.

Masks are no pictures: their pixels are class numbers, and `decode_classes` reads those as stored.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from beit.data.decoding.formats import formats_for
from beit.data.decoding.jpeg import ordinary_size

if TYPE_CHECKING:  # torch takes seconds to import, and looking at a folder needs none of it
    from torch import Tensor

PIXEL_LIMIT = 64 * 1024 * 1024
FILE_LIMIT = 512 * 1024 * 1024  # bytes; 64 Mpx of 16-bit RGB without compression fit

_ORIENTATION_TAG = 274
_BITS_PER_SAMPLE_TAG = 258
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
_PLAIN_MODES = frozenset(("RGB", "L", "1", "CMYK", "P", "YCbCr", "RGBX"))
_ALPHA_MODES = frozenset(("RGBA", "LA", "PA", "La", "RGBa"))
_CLASS_MODES = frozenset(("L", "P", "1", "I;16", "I"))  # of masks
_STRETCHED_GREYS = {"L;2": 85, "L;4": 17}


class BadPicture(Exception):
    """A file that is not a picture we read. `reason` is one short phrase."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NoClasses(BadPicture):
    """A sound picture that is no mask: its pixels are not class numbers."""


def read_bytes(path: bytes) -> bytes:
    """Read a picture's file.

    Raises:
        BadPicture: It is gone, unreadable, no regular file, empty or too large.
    """
    try:
        # Without O_NONBLOCK a pipe that carries a picture's name would hang the run.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadPicture("not a regular file")
            if status.st_size > FILE_LIMIT:
                raise BadPicture(f"file of {status.st_size} bytes, more than {FILE_LIMIT}")
            return file.read()
    except OSError as error:
        raise BadPicture(f"cannot be read ({error.strerror})") from None


def decode(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """Turn a file's bytes into an RGB picture of 8 bits a channel, upright.

    A JPEG that carries further pictures behind the first (MPO: gain or depth maps of telephones)
    is read as the JPEG that every viewer shows.

    Raises:
        BadPicture: The file is refused; the reason says why.
    """
    with _opened(data, formats_for(data), pixel_limit) as image:
        image.load()
        return to_rgb(_upright(image))


def decode_pixels(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> "Tensor":
    """What `decode` gives, as (3, H, W) uint8 in (H, W, 3) memory, which resizing likes best.

    A JPEG is decoded straight into it by torchvision, by the same rules and in less time; whatever
    torchvision refuses, and every other file, is Pillow's. Departure: the first plan was Pillow
    alone.

    Raises:
        BadPicture: The file is refused; the reason says why.
    """
    size = ordinary_size(data)
    if size is not None and size[0] * size[1] <= pixel_limit:
        pixels = _decoded_jpeg(data)
        if pixels is not None and pixels.shape == (3, *size):
            return pixels
    with _opened(data, formats_for(data), pixel_limit) as image:
        if image.format == "JPEG" and image.mode == "RGB" and _orientation(image) not in _TURNS:
            pixels = _decoded_jpeg(data)
            if pixels is not None and pixels.shape == (3, image.height, image.width):
                return pixels
        image.load()
        return pixels_of(to_rgb(_upright(image)))


def of_pillow(image: Image.Image) -> Image.Image:
    """A picture that Pillow has opened or made, as `decode` gives that of a file.

    Raises:
        BadPicture: It is refused; the reason says why.
    """
    with _strict_pillow():
        try:
            _check_header(image, PIXEL_LIMIT)
            image.load()
            return to_rgb(_upright(image))
        except BadPicture:
            raise
        except Exception as error:  # as for files: it may be read only now
            raise BadPicture(_phrase(error)) from None


def pixels_of(image: Image.Image) -> "Tensor":
    """An RGB picture as (3, H, W) uint8 in (H, W, 3) memory."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _decoded_jpeg(data: bytes) -> "Tensor | None":
    """A JPEG of three colours as RGB; None when torchvision cannot, whatever the reason."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        decoded: Tensor = decode_jpeg(encoded, ImageReadMode.RGB)
        return decoded
    except RuntimeError:
        return None


def decode_classes(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> NDArray[np.uint8]:
    """Turn the bytes of a mask into the class number of each pixel, upright, (H, W).

    A mask is a PNG whose stored values are the numbers: greys are not scaled, of a palette the
    index is taken and the colour is not, 16 bits are read when no value is above 255.

    Raises:
        NoClasses: The file holds colours, or numbers that are too large.
        BadPicture: The file is refused; the reason says why.
    """
    with _opened(data, ("PNG",), pixel_limit) as image:
        if image.mode not in _CLASS_MODES:
            raise NoClasses(f"colours ({image.mode}) and not class numbers")
        # Pillow stretches greys of 2 and 4 bits to 0..255; this is by how much.
        stretched = _STRETCHED_GREYS.get(str(image.tile[0][3]), 1)
        image.load()
        values = np.asarray(_upright(image))
        if values.size and int(values.max()) > 255:
            raise NoClasses(f"16-bit values up to {values.max()}, more than 255")
        return values.astype(np.uint8) // np.uint8(stretched)


def upright_size(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> tuple[int, int]:
    """Height and width that `decode` will give, read from the header alone.

    Raises:
        BadPicture: The file is refused; the reason says why.
    """
    with _opened(data, formats_for(data), pixel_limit) as image:
        width, height = image.size
        # TIFF files tell the size that they will have when they are turned.
        turned = image.format != "TIFF" and _orientation(image) in _SIDEWAYS
        return (width, height) if turned else (height, width)


@contextmanager
def _opened(
    data: bytes, formats: tuple[str, ...], pixel_limit: int
) -> Iterator[ImageFile.ImageFile]:
    """Open a file whose header is sound; whatever goes wrong inside becomes a `BadPicture`."""
    if not data:
        raise BadPicture("empty file")
    with _strict_pillow():
        try:
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _check_header(image, pixel_limit)
                yield image
        except BadPicture:
            raise
        except UnidentifiedImageError:
            raise BadPicture("not a readable " + ", ".join(formats) + " file") from None
        except Image.DecompressionBombError:
            raise BadPicture(f"more than {pixel_limit} pixels") from None
        except Exception as error:  # decoders raise whatever they like on damaged files
            raise BadPicture(_phrase(error)) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded picture of any mode to RGB.

    Raises:
        BadPicture: There is no rule for this mode.
    """
    if image.mode in _ALPHA_MODES or (image.mode in _PLAIN_MODES and "transparency" in image.info):
        return _on_white(image)
    if image.mode in _PLAIN_MODES:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    raise BadPicture(f"colour space {image.mode} is not supported")


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Keep Pillow quiet and strict, whatever another library in this process has set."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _check_header(image: Image.Image, pixel_limit: int) -> None:
    width, height = image.size
    if width * height > pixel_limit:
        raise BadPicture(f"{width} x {height} pixels, more than {pixel_limit}")
    # Of these the first, or the one that is called the primary, is what every viewer shows.
    first_alone = image.format in ("MPO", "HEIF")
    if getattr(image, "is_animated", False) and not first_alone:
        raise BadPicture("several pages" if image.format == "TIFF" else "animated")


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF (or XMP) orientation; Pillow has already turned TIFF files."""
    turn = _TURNS.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata round sound pixels: the picture is taken as it is
        return 1
    return orientation if isinstance(orientation, int) else 1


def _on_white(image: Image.Image) -> Image.Image:
    """Composite transparency on white, the ground of most pages that show such files."""
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    ground = Image.new("RGB", rgba.size, (255, 255, 255))
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale deep greys to 0..255.

    16-bit values are taken as parts of 65535 (or of the bit depth a TIFF states), floats in [0, 1]
    as parts of 1; other integers and floats have no agreed white, so their own range is stretched.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadPicture("infinite or undefined pixel values")
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        known = (0.0, 1.0) if low >= 0 and high <= 1 else None
    else:
        white = float(2 ** _bits(image) - 1)
        known = (0.0, white) if low >= 0 and high <= white else None
    low, high = known or (low, max(high, low + 1e-12))
    return np.rint((values - low) / (high - low) * 255).astype(np.uint8)


def _bits(image: Image.Image) -> int:
    stated = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE_TAG, (16,))
    bits = stated[0] if isinstance(stated, tuple) else stated
    return bits if 8 < bits < 16 else 16


def _phrase(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "truncated" in text or isinstance(error, EOFError):
        return "truncated"
    return f"damaged ({type(error).__name__}: {text[:80]})" if text else "damaged"
