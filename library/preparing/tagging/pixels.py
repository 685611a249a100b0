"""Pictures as taggers want them: on a white square, at the size of the model, in the numbers it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from library.data.config.specs import WHITE
from library.data.pixels.images import load_image, resize_pixels
from library.records import Size

LARGEST_SQUARE = 4096  # pixels of a side: a strip of 20000 x 10 would take a gigabyte


@dataclass(frozen=True)
class PixelForm:
    """What a model takes.

    Attributes:
        side: Width and height in pixels.
        is_channels_first: Shape [3, side, side] in -1..1; else [side, side, 3] in 0..255. Both have blue first.
        dtype: Type of the numbers.
    """

    side: int
    is_channels_first: bool
    dtype: type[np.floating] = np.float32

    def __str__(self) -> str:
        kind = "BGR -1..1, channels first" if self.is_channels_first else "BGR 0..255, channels last"
        return f"{self.side}x{self.side} {kind}"


def read_pixels(path: Path, form: PixelForm) -> np.ndarray:
    """Decode a picture for a model.

    Args:
        path: The file.
        form: What the model takes.

    Returns:
        Shape [side, side, 3] or [3, side, side].

    Raises:
        DatasetError: The picture is gone or broken. The message starts with its path.
    """
    image = load_image(path, background=WHITE, least=Size(form.side, form.side))
    return numbers(squared(image, form.side), form)


def squared(image: Image.Image, side: int) -> np.ndarray:
    """A picture in the middle of a white square. Shape [side, side, 3], uint8, RGB.

    Args:
        image: RGB.
        side: Of the square, in pixels. Smaller pictures are enlarged.
    """
    if max(image.size) > LARGEST_SQUARE:
        image = image.copy()
        image.thumbnail((LARGEST_SQUARE, LARGEST_SQUARE), Image.Resampling.BOX)
    longest = max(image.size)
    if image.width != image.height:
        square = Image.new("RGB", (longest, longest), WHITE)
        square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        image = square
    return resize_pixels(image, Size(side, side), None)


def numbers(pixels: np.ndarray, form: PixelForm) -> np.ndarray:
    """The numbers of a model from 8-bit RGB. Shape [side, side, 3] to that or [3, side, side]."""
    blue_first = pixels[:, :, ::-1]
    if form.is_channels_first:
        scaled = blue_first.astype(np.float32) / 127.5 - 1
        return np.ascontiguousarray(scaled.transpose(2, 0, 1).astype(form.dtype))
    return np.ascontiguousarray(blue_first.astype(form.dtype))
