"""What the header of an image file tells: the size it is seen at, how it is stored, and whether the file is whole.

No pixels are decoded.
"""

from __future__ import annotations

import importlib
import stat
import struct
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from library.data.files.file_ends import FileEnds, gif_blocks, is_cut_off, is_tiff_cut_off, read_ends
from library.data.files.patience import why_not_its_fault
from library.data.files.plain_headers import plain_header
from library.errors import DatasetError
from library.records import Size

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_ALWAYS_READ = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
_SOMETIMES_READ = (".apng", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".tga", ".qoi", ".ppm", ".pgm", ".pbm", ".pnm")
IMAGE_SUFFIXES = frozenset((*_ALWAYS_READ, *_SOMETIMES_READ))

_PLUGINS = {".avif": "pillow_avif", ".jxl": "pillow_jxl"}  # packages that add a format to Pillow when imported
_PACKAGES = {".avif": "pillow-avif-plugin", ".jxl": "pillow-jxl-plugin"}  # their names for pip
_ORIENTATION = 0x0112
_EXIF_PLACES = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
_ADVICE = "; replace or remove it"
_FAULTS = (  # of Pillow on broken files
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, OverflowError),
    *(RuntimeError, struct.error),
)


class PictureHeader(NamedTuple):
    """What is known of a picture before it is decoded.

    Attributes:
        size: As seen, after the EXIF orientation.
        orientation: EXIF orientation 1..8 that is already applied to `size`.
        frames: 1, or more for animations and files of several pages.
        mode: Pillow's name of how pixels are stored, for instance RGB, CMYK or I;16.
        has_alpha: Pixels may be transparent.
    """

    size: Size
    orientation: int = 1
    frames: int = 1
    mode: str = "RGB"
    has_alpha: bool = False


def read_header(path: Path) -> PictureHeader:
    """Look at an image file.

    Raises:
        DatasetError: It is empty, cut off, or not an image. The message starts with the path and has no full stop, to
            be listed.
        OSError: The drive or its rights keep it from being read, see `why_not_its_fault`.
    """
    try:
        return _look_at(path)
    except _FAULTS as error:
        if why_not_its_fault(error) is not None:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DatasetError(f"{path} cannot be read as an image ({reason}){_ADVICE}") from None


def open_picture(source: Path | BinaryIO) -> PillowImage:
    """Pillow's `open` without its own limit of pixels: `max_image_pixels` of the dataset file is checked instead."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return Image.open(source)


def load_plugin(path: Path) -> None:
    """Import the package that lets Pillow read this file's type, if there is one and it is installed."""
    plugin = _PLUGINS.get(path.suffix.lower())
    if plugin is not None:
        try:
            importlib.import_module(plugin)
        except ImportError:
            return  # newer Pillows read AVIF by themselves; else opening the file fails with a reason


@lru_cache(maxsize=64)
def why_unreadable(suffix: str) -> str | None:
    """Why the installed Pillow cannot read files of a type in IMAGE_SUFFIXES, and what to do; None where it can."""
    from PIL import Image, features

    suffix = suffix.lower()
    if suffix not in _SOMETIMES_READ:
        return None
    load_plugin(Path("a" + suffix))
    kind = Image.registered_extensions().get(suffix)
    if kind in Image.OPEN and (kind != "JPEG2000" or features.check("jpg_2000")):
        return None
    package = _PACKAGES.get(suffix)
    advice = f"install the package {package}" if package else "install one that does"
    return f"cannot be read: the installed Pillow does not know {suffix}; {advice}, or convert the picture"


def read_orientation(image: PillowImage, path: Path, tail: bytes | None = None) -> int:
    """EXIF orientation 1..8 of an opened image; 1 where there is none, or where it cannot be understood.

    Args:
        image: Opened, not necessarily decoded.
        path: Its file.
        tail: The end of the file, where it has been read already.
    """
    from PIL import Image

    try:
        if image.format == "PNG" and "exif" not in image.info and b"eXIf" in (_tail(path) if tail is None else tail):
            value = image.getexif().get(_ORIENTATION)  # after the pixels, so that they are decoded to get there
        elif image.format in ("PNG", "JPEG") and not image.info.keys() & _EXIF_PLACES:
            return 1  # the common case, quickly
        else:
            value = Image.Image.getexif(image).get(_ORIENTATION)  # PNG's own getexif would decode the pixels
    except _FAULTS as error:
        if why_not_its_fault(error) is not None:
            raise
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _look_at(path: Path) -> PictureHeader:
    from PIL import UnidentifiedImageError

    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise DatasetError(f"{path} is not a file{_ADVICE}")
        with path.open("rb") as file:
            ends = read_ends(file)
            if ends.length == 0:
                raise DatasetError(f"{path} is empty (0 bytes){_ADVICE}")
            if is_cut_off(file, ends):
                raise DatasetError(f"{path} is cut off (its end is missing){_ADVICE}")
            plain = None if b"eXIf" in ends.tail else plain_header(ends.start)
            if plain is not None:
                return PictureHeader(Size(plain.width, plain.height), mode=plain.mode, has_alpha=plain.has_alpha)
            load_plugin(path)
            file.seek(0)
            with open_picture(file) as image:
                return _describe(image, path, file, ends)
    except UnidentifiedImageError:
        raise DatasetError(f"{path} {_describe_content(path)}") from None


def _describe(image: PillowImage, path: Path, file: BinaryIO, ends: FileEnds) -> PictureHeader:
    if image.format == "TIFF" and is_tiff_cut_off(image, ends.length):
        raise DatasetError(f"{path} is cut off (its end is missing){_ADVICE}")
    orientation = read_orientation(image, path, ends.tail)
    width, height = _stored_size(image)
    return PictureHeader(
        size=Size(height, width) if orientation >= 5 else Size(width, height),
        orientation=orientation,
        mode=image.mode,
        has_alpha=image.has_transparency_data,
        frames=_count_frames(image, file),
    )


def _stored_size(image: PillowImage) -> tuple[int, int]:
    """Width and height before orientation. Newer Pillows apply a TIFF's on opening: its tags tell."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return tags[256], tags[257]
    return image.size


def _count_frames(image: PillowImage, file: BinaryIO) -> int:
    """Frames of an animation or pages of a file. Pillow would compose a GIF's frames to count them."""
    if image.format in ("JPEG", "MPO"):  # of several pictures in one photo, the first is the photo
        return 1
    if image.format == "GIF":
        file.seek(0)
        return max(1, sum(kind == b"," for kind in gif_blocks(file.read())))
    return int(getattr(image, "n_frames", 1))


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        return read_ends(file).tail


def _describe_content(path: Path) -> str:
    """Why Pillow does not know the file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start[:1] == b"<":
        found = start[:9].decode("ascii", "replace")
        return f"is not an image (it starts with '{found}'), probably a saved web page{_ADVICE}"
    if start.startswith(b"version https://git-lfs"):
        return "is not an image but a Git LFS pointer; fetch the real file"
    reason = why_unreadable(path.suffix)
    return reason or f"is damaged or not an image{_ADVICE}"
