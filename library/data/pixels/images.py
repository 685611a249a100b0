"""Pixels: from an image file to the size that is trained. Only this file and decoding.py decode training pictures.

A picture is turned as its EXIF orientation says and brought to 8-bit RGB whatever it was stored as; transparency
becomes the background; of an animation the first frame is used. A JPEG that shrinks a lot is decoded at a half, a
quarter or an eighth of its size, which its format gives almost for nothing; averaging does the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from library.data.config.specs import WHITE, Colour
from library.data.files.picture_notes import has_shape_of
from library.data.pixels.decoding import Decoded, decode, turned, upright
from library.data.pixels.opencv import opencv
from library.errors import DatasetError
from library.records import CropPlan, Size

if TYPE_CHECKING:
    from torch import Tensor

BLACK: Colour = (0, 0, 0)

_PILLOW_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
_OPENCV_FLAGS = {
    "nearest": "INTER_NEAREST",
    "bilinear": "INTER_LINEAR",
    "linear": "INTER_LINEAR",
    "bicubic": "INTER_CUBIC",
    "cubic": "INTER_CUBIC",
    "area": "INTER_AREA",
}
_MAY_START_SMALLER = (None, "area", "lanczos")  # filters that weigh all pixels; box takes whole pixels only


class Resized(NamedTuple):
    """A picture at the size it is cut from, upright.

    Attributes:
        pixels: Shape [height, width, 3], uint8.
        alpha: Its transparency, 255 where it is opaque. Shape [height, width], uint8; None where it was not asked for
            or the picture has none.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None


def load_image(
    path: Path, expected: Size | None = None, *, background: Colour = WHITE, least: Size | None = None
) -> Image.Image:
    """Decode a picture as it is seen: turned upright, 8-bit RGB.

    Args:
        path: The file.
        expected: The size that crops were planned for.
        background: What shows through transparency.
        least: A smaller picture will do, of at least twice this size; where decoding one is quicker that is given.

    Raises:
        DatasetError: The file is gone or broken, or its picture has another size now.
    """
    decoded = decode(path, expected, background=background, least=least)
    return turned(decoded.image, decoded.turn)


def load_with_alpha(path: Path, *, background: Colour = WHITE) -> tuple[Image.Image, Image.Image | None]:
    """Decode a picture as `load_image` does, and its transparency: mode L, 255 where opaque; None where it has none.

    Raises:
        DatasetError: The file is gone or broken.
    """
    decoded = decode(path, None, background=background, least=None)
    alpha = None if decoded.alpha is None else turned(decoded.alpha, decoded.turn)
    return turned(decoded.image, decoded.turn), alpha


def load_resized(
    path: Path,
    expected: Size,
    size: Size,
    interpolation: str | None,
    *,
    background: Colour = WHITE,
    with_alpha: bool = False,
) -> Resized:
    """Decode a picture and bring it to another size.

    Args:
        path: The file.
        expected: The size that crops were planned for.
        size: The wanted one, of about the same shape.
        interpolation: A name of the dataset file; None takes area averaging where the picture shrinks, else Lanczos.
        background: What shows through transparency.
        with_alpha: Give its transparency too.

    Raises:
        DatasetError: The file is gone or broken, or its picture has another size now.
    """
    least = size if interpolation in _MAY_START_SMALLER else None
    decoded = decode(path, expected, background=background, least=least)
    pixels = _resized(decoded, decoded.image, size, interpolation)
    if not with_alpha or decoded.alpha is None:
        return Resized(pixels)
    return Resized(pixels, _resized(decoded, decoded.alpha, size, interpolation))


def decode_mask(path: Path) -> Image.Image:
    """Decode a mask at its full size, upright: the red channel, on black where it is transparent, in mode L.

    Raises:
        DatasetError: The file is gone or broken, or its values are 0 and 1 where 0 and 255 are meant.
    """
    decoded = decode(path, None, background=BLACK, least=None)
    return turned(_mask_values(decoded, path), decoded.turn)


def load_mask(path: Path, picture: Size, size: Size, interpolation: str | None) -> np.ndarray:
    """Decode the mask of a picture and resize it as its picture is: the red channel, on black where it is transparent.

    Args:
        path: The mask's file.
        picture: Size of the picture; a mask of another size but the same shape is stretched over it.
        size: What the picture is resized to.
        interpolation: As for the picture.

    Returns:
        Shape [height, width], uint8.

    Raises:
        DatasetError: As for `decode_mask`, or the mask has another shape than its picture.
    """
    least = size if interpolation in _MAY_START_SMALLER else None
    decoded = decode(path, None, background=BLACK, least=least)
    if not has_shape_of(decoded.size, picture):
        raise DatasetError(
            f"{path} is {decoded.size} pixels but its picture {picture}. Give both one shape and start again."
        )
    if decoded.size != picture:
        is_shrunk = decoded.size.width >= size.width and decoded.size.height >= size.height
        interpolation = "area" if is_shrunk else "linear"
    return _resized(decoded, _mask_values(decoded, path), size, interpolation)


def load_beside(
    path: Path, picture: Size, size: Size, interpolation: str | None, *, background: Colour = WHITE
) -> np.ndarray:
    """Decode what belongs to a picture, in its colours, and resize it as the picture is.

    Args:
        path: The file.
        picture: Size of the picture; another size but the same shape is stretched over it.
        size: What the picture is resized to.
        interpolation: As for the picture.
        background: What shows through transparency.

    Returns:
        Shape [height, width, 3], uint8.

    Raises:
        DatasetError: The file is gone or broken, or has another shape than the picture.
    """
    decoded = decode(path, None, background=background, least=size if interpolation in _MAY_START_SMALLER else None)
    if not has_shape_of(decoded.size, picture):
        raise DatasetError(
            f"{path} is {decoded.size} pixels but its picture {picture}. Give both one shape and start again."
        )
    return _resized(decoded, decoded.image, size, interpolation)


def prepare_image(image: Image.Image, crop: CropPlan, interpolation: str | None, flip: bool) -> Tensor:
    """Resize, cut out, mirror and scale a decoded picture.

    Args:
        image: RGB.
        crop: What to cut out.
        interpolation: A name of the dataset file; None takes area averaging where the picture shrinks, else Lanczos.
        flip: Mirror left and right, after cutting.

    Returns:
        Pixels in -1..1. Shape [3, H, W], float32.
    """
    pixels = cut_out(resize_pixels(image, crop.resized, interpolation), crop)
    return pixels_to_tensor(pixels[:, ::-1] if flip else pixels)


def cut_out(pixels: np.ndarray, crop: CropPlan) -> np.ndarray:
    """The bucket out of a resized picture or mask; a view. Shape [height, width, ...]."""
    right, bottom = crop.left + crop.bucket.width, crop.top + crop.bucket.height
    return pixels[crop.top : bottom, crop.left : right]


def pixels_to_tensor(pixels: np.ndarray) -> Tensor:
    """From [height, width, 3] uint8 to [3, height, width] float32 in -1..1."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return tensor.float().div_(127.5).sub_(1.0)


def resize_pixels(
    image: Image.Image, size: Size, interpolation: str | None, *, part: tuple[float, float] | None = None
) -> np.ndarray:
    """A picture's pixels at another size.

    Args:
        image: RGB or L.
        size: The wanted one.
        interpolation: As for `prepare_image`.
        part: Width and height of what is resized, from the top left corner, in pixels and parts of them; None for
            all. Only for filters that average.

    Returns:
        Shape [height, width, 3] or [height, width], uint8.
    """
    if image.size == size and part in (None, image.size):
        return np.asarray(image)
    if interpolation is None:
        is_shrunk = image.width >= size.width and image.height >= size.height
        interpolation = "area" if is_shrunk else "lanczos"
    if interpolation in _PILLOW_FILTERS:
        box = None if part is None else (0.0, 0.0, *part)
        return np.asarray(image.resize(size, _PILLOW_FILTERS[interpolation], box=box))
    cv2 = opencv()
    flag = getattr(cv2, _OPENCV_FLAGS[interpolation])
    if part is None:
        resized: np.ndarray = cv2.resize(np.asarray(image), tuple(size), interpolation=flag)
        return resized
    scale = {"fx": size.width / part[0], "fy": size.height / part[1]}  # kept to the digit where no size is given
    resized = cv2.resize(np.asarray(image), None, **scale, interpolation=flag)
    return resized[: size.height, : size.width]


def _mask_values(decoded: Decoded, path: Path) -> Image.Image:
    values = decoded.image.getchannel("R")
    if values.getextrema()[1] == 1:  # 0 and 1, as other programs have them, or 8 bits in a file of 16
        raise DatasetError(f"{path} is nearly black, with values of 0 and 1 out of 255; save it with 0 and 255.")
    return values


def _resized(decoded: Decoded, image: Image.Image, size: Size, interpolation: str | None) -> np.ndarray:
    """An image of the decoded picture, upright and at another size."""
    if decoded.part is None:
        return resize_pixels(turned(image, decoded.turn), size, interpolation)
    stored_size = upright(size, decoded.turn)  # the part is of the stored picture: turning comes last
    pixels = resize_pixels(image, stored_size, interpolation, part=decoded.part)
    return np.asarray(turned(Image.fromarray(pixels), decoded.turn))
