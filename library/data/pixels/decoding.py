"""Decoding: from an image file to 8-bit RGB, whole or as small as will do, and why a file cannot be decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from library.data.config.specs import Colour
from library.data.files.headers import load_plugin, open_picture, read_header, read_orientation
from library.data.files.patience import read_patiently, why_not_its_fault
from library.data.pixels.colours import alpha_of, to_rgb
from library.errors import DatasetError, UnreadableError
from library.records import Size

_FAULTS = (  # of Pillow on broken files
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, OverflowError),
    *(RuntimeError, struct.error),
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}
_LEAST_LEFT = 2  # times the wanted size: what decoding leaves for averaging


@dataclass(frozen=True)
class Decoded:
    """A picture as it is stored, in 8-bit RGB.

    Attributes:
        image: Perhaps decoded at a half, a quarter or an eighth of its size.
        size: Of the whole picture, upright.
        turn: What makes it upright, or None.
        alpha: Its transparency, in mode L; None where it has none.
        part: Width and height that the picture fills in a smaller `image`: a little less than its size where a side
            is no multiple of the reduction. None where it is not reduced.
    """

    image: Image.Image
    size: Size
    turn: Image.Transpose | None
    alpha: Image.Image | None = None
    part: tuple[float, float] | None = None


def decode(path: Path, expected: Size | None, *, background: Colour, least: Size | None) -> Decoded:
    """Decode a picture as it is stored, again if a network drive has a hiccup.

    Args:
        path: The file.
        expected: The size that crops were planned for; None for any.
        background: What shows through transparency.
        least: A smaller picture will do, of at least twice this size; where decoding one is quicker that is given.

    Raises:
        DatasetError: The file is gone or broken, or its picture has another size now.
    """
    load_plugin(path)
    try:
        decoded = read_patiently(lambda: _decode_file(path, background, least), path)
    except _FAULTS as error:
        raise _why_broken(path, error) from None
    if expected is not None and decoded.size != expected:
        raise DatasetError(
            f"{path} is {decoded.size} pixels but was {expected} when the folder was scanned. Start again."
        )
    return decoded


def _why_broken(path: Path, error: Exception) -> DatasetError:
    """What is wrong with a file that could not be decoded: what its header tells, or else the decoder."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    advice = why_not_its_fault(error)
    if advice is not None:
        return UnreadableError(f"{path} cannot be decoded ({reason}). {advice.capitalize()}.")
    try:
        read_header(path)
    except DatasetError as fault:
        return DatasetError(f"{fault}.")
    except OSError as fault:  # the drive fails now
        return _why_broken(path, fault)
    if isinstance(error, UnidentifiedImageError):  # which names an object of Python
        reason = "the beginning of the file is damaged"
    return DatasetError(f"{path} cannot be decoded ({reason}). Repair, replace or remove the picture.")


def _decode_file(path: Path, background: Colour, least: Size | None) -> Decoded:
    with path.open("rb") as file, open_picture(file) as stored:
        if stored.format in ("JPEG", "MPO"):
            return _decode_jpeg(stored, path, least)
        stored.load()
        turn = _TURNS.get(read_orientation(stored, path))
        return Decoded(to_rgb(stored, background), upright(stored.size, turn), turn, alpha_of(stored))


def _decode_jpeg(stored: Image.Image, path: Path, least: Size | None) -> Decoded:
    """Of a JPEG, no more than is needed for twice the size `least`, which is of the upright picture."""
    turn = _TURNS.get(read_orientation(stored, path))
    full, part = stored.size, None
    if least is not None:
        asked = upright(least, turn)
        drafted = stored.draft(None, (_LEAST_LEFT * asked.width, _LEAST_LEFT * asked.height))
        if drafted is not None and stored.size != full:
            part = drafted[1][2:]
    stored.load()
    return Decoded(to_rgb(stored), upright(full, turn), turn, part=part)


def turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """The image as it is seen."""
    return image if turn is None else image.transpose(turn)


def upright(size: tuple[int, int], turn: Image.Transpose | None) -> Size:
    """The size after turning; also the size before, of one after."""
    width, height = size
    return Size(height, width) if turn in _SIDEWAYS else Size(width, height)
