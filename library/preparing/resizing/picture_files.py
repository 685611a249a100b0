"""A picture with what belongs to it: decoded as a training decodes it, resized, written as JPEG or PNG.

The values of pixels are not changed to those of another colour space, so the profile that says what they mean goes
along. Only CMYK and LAB become sRGB, as in a training; that needs no profile. What is grey stays grey. Colours beneath
transparency are computed back from the picture on white, so that on any background it is what the original is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from library.data.files.file_ends import read_ends
from library.data.files.headers import PictureHeader, open_picture, read_header
from library.data.files.patience import read_patiently
from library.data.pixels.images import cut_out, load_with_alpha, resize_pixels
from library.errors import UnreadableError
from library.preparing.resizing.exif import LostExif, carried_exif, exif_bytes
from library.records import CropPlan, Size

LARGEST_JPEG = 65500  # pixels of a side
_LARGEST_JPEG_EXIF = 65533  # bytes
_GREY = frozenset(("1", "L", "LA", "La", "I", "F"))
_CONVERTED = frozenset(("CMYK", "LAB"))
_PROFILE_OF = {"RGB": b"RGB ", "L": b"GRAY"}  # colour space in a profile's header
_FORMATS = {".jpg": ("JPEG", "MPO"), ".png": ("PNG",)}
_ADVICE = "Check the drive and the rights of the file, and start again"
_FILTERS = {"lanczos4": "lanczos"}  # names of the option, in those of a dataset file; others are the same

Result = TypeVar("Result")


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        path: Its file.
        pixels: Upright, on white. Mode RGB, or L where the file is grey.
        alpha: Transparency, in mode L, or None.
        kind: Pillow's name of the file's format.
        is_plain: One picture, stored upright.
        exif: What a new file takes over, or None.
        has_lost_exif: There is some that cannot be read.
        profile: ICC profile of the pixels, or None.
    """

    path: Path
    pixels: Image.Image
    alpha: Image.Image | None
    kind: str
    is_plain: bool
    exif: Image.Exif | None
    has_lost_exif: bool
    profile: bytes | None

    @property
    def size(self) -> Size:
        """Upright."""
        return Size(*self.pixels.size)


def look_at(path: Path) -> PictureHeader:
    """A picture's header.

    Raises:
        DatasetError: It is broken, gone, or its drive does not give it.
    """
    return _read(path, lambda: read_header(path))


def read_picture(path: Path, header: PictureHeader) -> Picture:
    """Decode a file.

    Args:
        path: The file.
        header: From `look_at`.

    Raises:
        DatasetError: It is broken or gone.
    """
    pixels, alpha = load_with_alpha(path)
    if header.mode in _GREY or header.mode.startswith("I;16"):
        pixels = pixels.getchannel("R")
    kind, profile, exif, has_lost_exif = _read(path, lambda: _beside_the_pixels(path))
    is_kept = profile is not None and header.mode not in _CONVERTED and profile[16:20] == _PROFILE_OF[pixels.mode]
    is_plain = header.orientation == header.frames == 1
    return Picture(path, pixels, alpha, kind, is_plain, exif, has_lost_exif, profile if is_kept else None)


def _beside_the_pixels(path: Path) -> tuple[str, bytes | None, Image.Exif | None, bool]:
    """Format, profile, EXIF, and whether that is damaged."""
    with path.open("rb") as file:
        tail = read_ends(file).tail
        file.seek(0)
        with open_picture(file) as stored:
            kind, profile = stored.format or "", stored.info.get("icc_profile") or None
            try:
                return kind, profile, carried_exif(stored, tail), False
            except LostExif:
                return kind, profile, None, True


def _read(path: Path, read: Callable[[], Result]) -> Result:
    try:
        return read_patiently(read, path)
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({error.strerror or error}). {_ADVICE}.") from None


def can_be_copied(picture: Picture, crop: CropPlan, suffix: str) -> bool:
    """Whether the file itself is what would be written: nothing is resized, cut or turned, and the format is right."""
    is_same = crop.resized == crop.bucket == picture.size
    return is_same and picture.is_plain and picture.kind in _FORMATS[suffix]


def resized_picture(picture: Picture, crop: CropPlan, interpolation: str | None) -> Image.Image:
    """A picture resized and cut, in mode RGB, RGBA, L or LA.

    Args:
        picture: The original.
        crop: Its new size and what is cut out of that.
        interpolation: A name of the option; None takes area averaging where the picture shrinks, else Lanczos.
    """
    name = _FILTERS.get(interpolation or "", interpolation)
    pixels = cut_out(resize_pixels(picture.pixels, crop.resized, name), crop)
    if picture.alpha is None:
        return Image.fromarray(np.ascontiguousarray(pixels))
    alpha = cut_out(resize_pixels(picture.alpha, crop.resized, name), crop)
    colours = _without_white(pixels if pixels.ndim == 3 else pixels[..., None], alpha[..., None])
    return Image.fromarray(np.concatenate((colours, alpha[..., None]), axis=-1))


def _without_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The colours that look like `pixels` on white. Shape [H, W, C], uint8; `alpha` is [H, W, 1]."""
    shares = np.maximum(alpha, 1).astype(np.float32) / 255
    colours = 255 - (255 - pixels.astype(np.float32)) / shares
    result: np.ndarray = colours.round().clip(0, 255).astype(np.uint8)
    return result


def save_picture(image: Image.Image, place: Path, suffix: str, picture: Picture) -> bool:
    """Write a resized picture.

    Args:
        image: From `resized_picture`.
        place: The file, of any name.
        suffix: ".jpg" or ".png".
        picture: The original, whose EXIF and profile go along.

    Returns:
        Whether all of the EXIF went along.
    """
    exif, is_whole = _written_exif(picture, Size(*image.size), suffix)
    if suffix == ".png":
        image.save(place, format="PNG", exif=exif, icc_profile=picture.profile)
    else:
        image.save(place, format="JPEG", quality=100, subsampling=0, exif=exif, icc_profile=picture.profile)
    return is_whole


def _written_exif(picture: Picture, size: Size, suffix: str) -> tuple[bytes, bool]:
    if picture.exif is None:
        return b"", not picture.has_lost_exif
    try:
        exif = exif_bytes(picture.exif, size)
    except LostExif:
        return b"", False
    fits = suffix == ".png" or len(exif) <= _LARGEST_JPEG_EXIF
    return (exif, True) if fits else (b"", False)
