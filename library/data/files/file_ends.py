"""Whether an image file is all there, from what its format says of its length. No pixels are decoded."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_START, _TAIL = 1 << 12, 1 << 16  # bytes
_STRIP_OFFSETS, _STRIP_LENGTHS, _TILE_OFFSETS, _TILE_LENGTHS = 273, 279, 324, 325  # tags of TIFF


class FileEnds(NamedTuple):
    """The first bytes of a file, its last ones and its length in bytes."""

    start: bytes
    tail: bytes
    length: int


def read_ends(file: BinaryIO) -> FileEnds:
    """Read both ends of an open file: 4 KiB, and 64 KiB of a PNG, else 16 bytes."""
    length = os.fstat(file.fileno()).st_size
    start = file.read(_START)
    if length <= len(start):
        return FileEnds(start, start, length)
    size = min(length, _TAIL if start.startswith(b"\x89PNG") else 16)
    file.seek(length - size)
    return FileEnds(start, file.read(size), length)


def is_cut_off(file: BinaryIO, ends: FileEnds) -> bool:
    """Whether the end of the picture is missing. What follows it (some cameras add data) does not matter.

    Formats that do not tell count as whole.
    """
    start = ends.start
    if start.startswith(b"\xff\xd8"):
        return not (ends.tail.endswith(b"\xff\xd9") or _has_jpeg_end(_all_of(file)))
    if start.startswith(b"\x89PNG"):
        return not (b"IEND" in ends.tail[-12:] or b"IEND" in ends.tail or b"IEND" in _all_of(file))
    if start.startswith(b"RIFF"):
        return int.from_bytes(start[4:8], "little") + 8 > ends.length
    if start.startswith(b"BM"):
        return _bitmap_length(start) > ends.length
    if start.startswith(b"GIF8"):
        return not any(kind == b";" or kind == b"," for kind in gif_blocks(_all_of(file)))
    if start[:4] in (b"II*\0", b"MM\0*"):  # the directory may lie behind the pixels
        return int.from_bytes(start[4:8], "little" if start[:1] == b"I" else "big") >= ends.length
    if start[4:8] == b"ftyp":
        return _boxes_end(file, ends.length) > ends.length
    return False


def is_tiff_cut_off(image: PillowImage, length: int) -> bool:
    """Whether pixels of an opened TIFF lie behind the end of its file of `length` bytes."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    for offsets, lengths in ((_STRIP_OFFSETS, _STRIP_LENGTHS), (_TILE_OFFSETS, _TILE_LENGTHS)):
        pairs = zip(_numbers(tags.get(offsets)), _numbers(tags.get(lengths)), strict=False)
        if any(offset + size > length for offset, size in pairs):
            return True
    return False


def gif_blocks(data: bytes) -> Iterator[bytes]:
    """The kinds of a GIF's complete blocks: `!` extension, `,` frame, `;` end. Ends where the file is cut off."""
    place = 13 + _colour_table(data[10:11])
    while place < len(data):
        kind = data[place : place + 1]
        if kind == b"!":
            place = _after_parts(data, place + 2)
        elif kind == b",":
            place = _after_parts(data, place + 10 + _colour_table(data[place + 9 : place + 10]) + 1)
        else:
            place += 1
        if place <= len(data):
            yield kind
        if kind not in b"!,":
            return


def _all_of(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _has_jpeg_end(data: bytes) -> bool:
    """Whether an end mark follows the pixels. A thumbnail in the header has one of its own, so segments are skipped."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data.find(b"\xff\xd9", place) >= 0


def _bitmap_length(start: bytes) -> int:
    """Bytes a BMP needs at least; 0 where it is compressed or of the oldest kind."""
    if len(start) < 34 or int.from_bytes(start[14:18], "little") < 40:
        return 0
    offset = int.from_bytes(start[10:14], "little")
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", start, 18)
    if compression not in (0, 3):
        return 0
    return offset + (abs(width) * bits + 31) // 32 * 4 * abs(height)


def _boxes_end(file: BinaryIO, length: int) -> int:
    """Where the last of an AVIF's outermost boxes ends."""
    place = 0
    while place + 8 <= length:
        file.seek(place)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # the length stands behind the name
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: to the end of the file
            return length
        place += size
    return place


def _numbers(value: object) -> tuple[int, ...]:
    """The whole numbers of a TIFF tag."""
    if isinstance(value, int):
        return (value,)
    return tuple(item for item in value if isinstance(item, int)) if isinstance(value, tuple) else ()


def _colour_table(flags: bytes) -> int:
    """Bytes of the colour table that a GIF's flags announce."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _after_parts(data: bytes, place: int) -> int:
    """Where a GIF block's chain of parts ends; behind the data where it does not."""
    while place < len(data):
        size = data[place]
        place += 1 + size
        if size == 0:
            return place
    return len(data) + 1
