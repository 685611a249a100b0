"""What the header of an image file tells: the size it is seen at, and whether the file is whole.

No pixels are decoded.
"""

from __future__ import annotations

import importlib
import os
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from library.errors import DatasetError
from library.records import Size

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jxl")
)

_PLUGINS = {".avif": "pillow_avif", ".jxl": "pillow_jxl"}  # packages that add a format to Pillow when imported
_ORIENTATION = 0x0112
_ADVICE = "; replace or remove it"
_FAULTS = (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, struct.error)  # of Pillow on broken files


class PictureHeader(NamedTuple):
    """Size as seen, and the EXIF orientation 1..8 that is already applied to it."""

    size: Size
    orientation: int


def read_header(path: Path) -> PictureHeader:
    """Look at an image file.

    Raises:
        DatasetError: It is empty, cut off, too large, or not an image. The message starts with the path and has no
            full stop, to be listed.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if path.stat().st_size == 0:
            raise DatasetError(f"{path} is empty (0 bytes){_ADVICE}")
        _check_is_whole(path)
        load_plugin(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large pictures and odd EXIF data
            with Image.open(path) as image:
                orientation = read_orientation(image, path)
                size = Size(*_stored_size(image))
    except UnidentifiedImageError:
        raise DatasetError(f"{path} {_describe_content(path)}") from None
    except Image.DecompressionBombError:
        raise DatasetError(f"{path} has more pixels than Pillow opens; make it smaller") from None
    except _FAULTS as error:
        raise DatasetError(f"{path} cannot be read as an image ({error}){_ADVICE}") from None
    return PictureHeader(Size(size.height, size.width) if orientation >= 5 else size, orientation)


def load_plugin(path: Path) -> None:
    """Import the package that lets Pillow read this file's type, if there is one and it is installed."""
    plugin = _PLUGINS.get(path.suffix.lower())
    if plugin is not None:
        try:
            importlib.import_module(plugin)
        except ImportError:
            return  # newer Pillows read AVIF by themselves; else opening the file fails with a reason


def read_orientation(image: PillowImage, path: Path) -> int:
    """EXIF orientation 1..8 of an opened image; 1 where there is none, or where it cannot be understood."""
    from PIL import Image

    try:
        if image.format == "PNG" and "exif" not in image.info and b"eXIf" in _tail(path, 1 << 16):
            value = image.getexif().get(_ORIENTATION)  # after the pixels, so that they are decoded to get there
        else:
            value = Image.Image.getexif(image).get(_ORIENTATION)  # PNG's own getexif would decode the pixels
    except _FAULTS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _stored_size(image: PillowImage) -> tuple[int, int]:
    """Width and height before orientation. Newer Pillows apply a TIFF's on opening: its tags tell."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return tags[256], tags[257]
    return image.size


def _tail(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - length))
        return file.read()


def _check_is_whole(path: Path) -> None:
    """Look for the end of the commonest formats. What follows it (some cameras add data) does not matter."""
    with path.open("rb") as file:
        start = file.read(12)
    is_whole = True
    if start.startswith(b"\xff\xd8"):
        is_whole = _tail(path, 2) == b"\xff\xd9" or _has_jpeg_end(path.read_bytes())
    elif start.startswith(b"\x89PNG"):
        is_whole = b"IEND" in _tail(path, 12) or b"IEND" in path.read_bytes()
    elif start.startswith(b"RIFF"):
        is_whole = int.from_bytes(start[4:8], "little") + 8 <= path.stat().st_size
    if not is_whole:
        raise DatasetError(f"{path} is cut off (its end is missing){_ADVICE}")


def _has_jpeg_end(data: bytes) -> bool:
    """Whether an end mark follows the pixels. A thumbnail in the header has one of its own, so segments are skipped."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data.find(b"\xff\xd9", place) >= 0


def _describe_content(path: Path) -> str:
    """Why Pillow does not know the file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start[:1] == b"<":
        found = start[:9].decode("ascii", "replace")
        return f"is not an image (it starts with '{found}'), probably a saved web page{_ADVICE}"
    if start.startswith(b"version https://git-lfs"):
        return "is not an image but a Git LFS pointer; fetch the real file"
    if path.suffix.lower() in _PLUGINS:
        kind = path.suffix.lower()
        return f"cannot be read: the installed Pillow does not know {kind}, or the file is damaged"
    return f"is damaged or not an image{_ADVICE}"
