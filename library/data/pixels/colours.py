"""From whatever a picture is stored as to 8-bit RGB and its transparency."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from library.data.config.specs import WHITE, Colour

_MAX_OF_16_BITS = 65535


def to_rgb(image: Image.Image, background: Colour = WHITE) -> Image.Image:
    """A decoded picture in 8-bit RGB; where it is transparent the background shows.

    Raises:
        ValueError: It has numbers of a range that no 8 bits can be told from.
    """
    if _is_deep_grey(image):
        return in_8_bits(image).convert("RGB")
    if image.mode in ("CMYK", "LAB"):
        return _through_profile(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    beneath = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(beneath, image.convert("RGBA")).convert("RGB")


def alpha_of(image: Image.Image) -> Image.Image | None:
    """A decoded picture's transparency, 0 to 255, in mode L; None where it has none."""
    if _is_deep_grey(image) or not image.has_transparency_data:
        return None
    return image.convert("RGBA").getchannel("A")


def in_8_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8-bit grey, any other picture as it is.

    Raises:
        ValueError: It has numbers of a range that no 8 bits can be told from.
    """
    return _grey_to_8_bit(image) if _is_deep_grey(image) else image


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey; of 32-bit numbers, whose range no file states, tell it from the values.

    Raises:
        ValueError: The values fit neither 0..1, 8 nor 16 bits.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or image.format == "PNG":
        scale = 1 / 257
    elif not (low >= 0 and high <= _MAX_OF_16_BITS):
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
