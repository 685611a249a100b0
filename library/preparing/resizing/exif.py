"""What a camera wrote into a picture, carried over to a smaller one that is stored upright.

Left out is what is not true of the new file: the orientation, how and where the old one stored its pixels, its
thumbnail, and the maker's own notes, which hold addresses in the old file.

Source: Exif 2.32; TIFF 6.0.
"""

from __future__ import annotations

import struct

from PIL import Image

from library.records import Size

_FAULTS = (  # of Pillow on broken EXIF
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, OverflowError),
    *(AttributeError, RuntimeError, struct.error),
)
_CAMERA, _PLACE = 0x8769, 0x8825  # inner directories: of the exposure, of the place
_ORIENTATION = 0x0112
_WIDTH, _HEIGHT = 0xA002, 0xA003
_MAKER_NOTE, _INTEROPERABILITY = 0x927C, 0xA005
_OF_THE_OLD_FILE = frozenset(
    (
        *(254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 284, 317, 320),  # how pixels are stored
        *(322, 323, 324, 325, 330, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532),
        *(700, 33723, 34377, 34675),  # XMP, IPTC, Photoshop, colour profile
        *(_ORIENTATION, _CAMERA, _PLACE, _INTEROPERABILITY),
    )
)


class LostExif(Exception):
    """There is EXIF, and it cannot be read or written."""


def carried_exif(image: Image.Image, tail: bytes) -> Image.Exif | None:
    """The EXIF of an opened picture, without what is only true of its file; None where there is none.

    Args:
        image: Its file is still open.
        tail: The end of the file.

    Raises:
        LostExif: It is damaged.
    """
    try:
        is_late = image.format == "PNG" and "exif" not in image.info and b"eXIf" in tail
        found = image.getexif() if is_late else Image.Image.getexif(image)  # PNG's own would decode the pixels
        carried = Image.Exif()
        for tag, value in found.items():
            if tag not in _OF_THE_OLD_FILE:
                carried[tag] = value
        for tag in (_CAMERA, _PLACE):
            inner = found.get_ifd(tag)
            kept = {key: inner[key] for key in inner if key not in (_MAKER_NOTE, _INTEROPERABILITY)}
            if kept:
                carried[tag] = kept
    except _FAULTS as error:
        raise LostExif(str(error)) from None
    return carried if len(carried) else None


def exif_bytes(exif: Image.Exif, size: Size) -> bytes:
    """EXIF as it is written into a file of another size.

    Raises:
        LostExif: It has values that cannot be written.
    """
    camera = exif.get(_CAMERA)
    if isinstance(camera, dict):
        exif = _copy_of(exif)
        sides = ((_WIDTH, size.width), (_HEIGHT, size.height))
        exif[_CAMERA] = {**camera, **{tag: side for tag, side in sides if tag in camera}}
    try:
        return exif.tobytes()
    except _FAULTS as error:
        raise LostExif(str(error)) from None


def _copy_of(exif: Image.Exif) -> Image.Exif:
    copy = Image.Exif()
    for tag, value in exif.items():
        copy[tag] = value
    return copy
