"""Headers of ordinary JPEG and PNG files from their first bytes: what makes up most folders, in a fraction of the time.

Whatever is not ordinary (EXIF, XMP, animation, several pictures in one file, odd or damaged structure) is left to
Pillow.

Sources: ISO/IEC 10918-1, annex B; the PNG specification, third edition, sections 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_PASSED = (0xC4, 0xDB, 0xDD, 0xE0, 0xFE)  # tables, restart interval, JFIF, comment
_ICC, _ADOBE = (0xE2, b"ICC_PROFILE\0"), (0xEE, b"Adobe")
_PNG_MODES = {
    **{(1, 0): "1", (2, 0): "L", (4, 0): "L", (8, 0): "L", (16, 0): "I;16"},
    **{(8, 2): "RGB", (16, 2): "RGB", (8, 6): "RGBA", (16, 6): "RGBA", (8, 4): "LA"},
    **{(bits, 3): "P" for bits in (1, 2, 4, 8)},
}
_PLAIN_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"pHYs", b"tIME", b"PLTE", b"tRNS")


class PlainHeader(NamedTuple):
    """A picture of one frame that is not turned. Sides in pixels; `mode` as Pillow names it."""

    width: int
    height: int
    mode: str
    has_alpha: bool


def plain_header(start: bytes) -> PlainHeader | None:
    """What the first bytes of a file say; None where that is not enough, or not ordinary."""
    if start.startswith(b"\xff\xd8"):
        return _jpeg(start)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(start)
    return None


def _jpeg(start: bytes) -> PlainHeader | None:
    found = None
    place = 2
    while place + 10 <= len(start) and start[place] == 0xFF:
        kind = start[place + 1]
        length = int.from_bytes(start[place + 2 : place + 4], "big")
        body = place + 4
        if kind == 0xDA:  # pixels follow
            return found
        if kind in _FRAMES and found is None:
            bits, height, width, parts = struct.unpack_from(">BHHB", start, body)
            if bits != 8 or not width or not height or parts not in _JPEG_MODES:
                return None
            found = PlainHeader(width, height, _JPEG_MODES[parts], has_alpha=False)
        elif kind not in _PASSED and not _is_plain_application(kind, start, body):
            return None
        place = body + length - 2
    return None


def _is_plain_application(kind: int, start: bytes, body: int) -> bool:
    return any(kind == known and start.startswith(mark, body) for known, mark in (_ICC, _ADOBE))


def _png(start: bytes) -> PlainHeader | None:
    if len(start) < 45 or start[8:16] != b"\0\0\0\rIHDR":
        return None
    width, height, bits, colours, packing, filters, lacing, checksum = struct.unpack_from(">IIBBBBBI", start, 16)
    mode = _PNG_MODES.get((bits, colours))
    is_odd = packing or filters or lacing > 1 or zlib.crc32(start[12:29]) != checksum
    if mode is None or is_odd or not 0 < width < 1 << 31 or not 0 < height < 1 << 31:
        return None
    has_alpha = mode in ("RGBA", "LA")
    place = 33
    while place + 8 <= len(start):
        length, kind = int.from_bytes(start[place : place + 4], "big"), start[place + 4 : place + 8]
        if kind == b"IDAT":
            return PlainHeader(width, height, mode, has_alpha)
        if kind not in _PLAIN_CHUNKS:
            return None
        has_alpha = has_alpha or kind == b"tRNS"
        place += 12 + length
    return None
