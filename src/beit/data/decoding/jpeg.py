"""The header of an ordinary JPEG: what has to be known of it before it is decoded, and no more."""

import struct

_START, _FRAME, _SCAN = b"\xff\xd8", 0xC0, 0xDA
# JFIF's mark, quantisation and Huffman tables, restart interval, comment. What else there may be
# (EXIF with an orientation, profiles, several pictures, Adobe's colours, other coding) is not ours.
_HARMLESS = frozenset((0xE0, 0xDB, 0xC4, 0xDD, 0xFE))


def ordinary_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a baseline JPEG of three colours whose header asks for nothing more.

    None for every other file, damaged headers included: it is for Pillow to judge.
    """
    size, at = None, 2
    if not data.startswith(_START):
        return None
    while at + 10 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == _SCAN:
            return size
        if marker == _FRAME and size is None:
            bits, height, width, colours = struct.unpack_from(">BHHB", data, at + 4)
            if (bits, colours) != (8, 3) or not height or not width:
                return None
            size = height, width
        elif marker not in _HARMLESS or length < 2:
            return None
        at += 2 + length
    return None
