"""Pixels: from an image file to what the VAE gets. The only file of the toolkit that decodes training pictures.

A picture is turned as its EXIF orientation says and brought to 8-bit RGB whatever it was stored as; transparency
becomes white; of an animation the first frame is used.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from library.data.headers import load_plugin, read_orientation
from library.errors import DatasetError
from library.records import CropPlan, Size

if TYPE_CHECKING:
    from torch import Tensor

BACKGROUND = (255, 255, 255)

_FAULTS = (  # of Pillow on broken files
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError),
    *(struct.error, Image.DecompressionBombError),
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
_PILLOW_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
_OPENCV_FLAGS = {
    "nearest": "INTER_NEAREST",
    "bilinear": "INTER_LINEAR",
    "linear": "INTER_LINEAR",
    "bicubic": "INTER_CUBIC",
    "cubic": "INTER_CUBIC",
    "area": "INTER_AREA",
}


def load_image(path: Path, expected: Size | None = None) -> Image.Image:
    """Decode a picture as it is seen: turned upright, 8-bit RGB.

    Args:
        path: The file.
        expected: The size that crops were planned for.

    Raises:
        DatasetError: The file is gone or broken, or its picture has another size now.
    """
    load_plugin(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as stored:
                stored.load()
                turn = _TURNS.get(read_orientation(stored, path))
                image = _to_rgb(stored)
    except _FAULTS as error:
        raise DatasetError(f"{path} cannot be decoded ({error}). Repair, replace or remove the picture.") from None
    image = image if turn is None else image.transpose(turn)
    if expected is not None and image.size != expected:
        size = Size(*image.size)
        raise DatasetError(f"{path} is {size} pixels but was {expected} when the folder was scanned. Start again.")
    return image


def prepare_image(image: Image.Image, crop: CropPlan, interpolation: str | None, flip: bool) -> Tensor:
    """Resize, cut out, mirror and scale a picture.

    Args:
        image: RGB.
        crop: What to cut out.
        interpolation: A name of the dataset file; None takes area averaging where the picture shrinks, else Lanczos.
        flip: Mirror left and right, after cutting.

    Returns:
        Pixels in -1..1. Shape [3, H, W], float32.
    """
    import torch

    pixels = resize_pixels(image, crop.resized, interpolation)
    right, bottom = crop.left + crop.bucket.width, crop.top + crop.bucket.height
    pixels = pixels[crop.top : bottom, crop.left : right]
    if flip:
        pixels = pixels[:, ::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return tensor.float().div_(127.5).sub_(1.0)


def resize_pixels(image: Image.Image, size: Size, interpolation: str | None) -> np.ndarray:
    """A picture's pixels at another size. Shape [height, width, 3], uint8."""
    if image.size == size:
        return np.asarray(image)
    if interpolation is None:
        is_shrunk = image.width >= size.width and image.height >= size.height
        interpolation = "area" if is_shrunk else "lanczos"
    if interpolation in _PILLOW_FILTERS:
        return np.asarray(image.resize(size, _PILLOW_FILTERS[interpolation]))
    import cv2

    resized: np.ndarray = cv2.resize(
        np.asarray(image), tuple(size), interpolation=getattr(cv2, _OPENCV_FLAGS[interpolation])
    )
    return resized


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, whatever the picture was stored as."""
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return _grey_to_8_bit(image).convert("RGB")
    if image.mode in ("CMYK", "LAB"):
        return _through_profile(image)
    if image.has_transparency_data:
        return _on_background(image.convert("RGBA"))
    return image.convert("RGB")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey; of 32-bit numbers, whose range no file states, tell it from the values.

    Raises:
        ValueError: The values fit neither 0..1, 8 nor 16 bits.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or image.format == "PNG":
        scale = 1 / 257
    elif not (low >= 0 and high <= 65535):
        raise ValueError(f"its grey values go from {low:g} to {high:g}; save it with 8 or 16 bits")
    elif high <= 1 and image.mode == "F":
        scale = 255.0
    else:
        scale = 1.0 if high <= 255 else 1 / 257
    return Image.fromarray(np.round(values * scale).astype(np.uint8))


def _through_profile(image: Image.Image) -> Image.Image:
    """CMYK or LAB to RGB: by the embedded profile if there is one that can be used, else by Pillow's own formula."""
    try:
        from PIL import ImageCms
    except ImportError:  # a Pillow without LittleCMS
        return image.convert("RGB")
    embedded = image.info.get("icc_profile")
    source = io.BytesIO(embedded) if embedded else ImageCms.createProfile("LAB") if image.mode == "LAB" else None
    if source is None:
        return image.convert("RGB")
    try:
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:  # a damaged profile, or one of another colour space
        return image.convert("RGB")
    assert converted is not None
    return converted


def _on_background(image: Image.Image) -> Image.Image:
    """Lay a picture with transparency on white."""
    background = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(background, image).convert("RGB")
