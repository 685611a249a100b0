"""What a picture looks like in a few hundred bytes, so that copies are recognised: another quality, size or a trim.

Two things are kept. The signs of the 63 lowest frequencies of its brightness (discrete cosine transform), the idea of
"pHash"; a frequency that is hardly there has sign 0, as its sign would be chance. And its colours on a grid of 16 x
16, since simple drawings on plain grounds share frequencies and differ in colour or place.

Source of the transform: Ahmed, Natarajan, Rao 1974, "Discrete Cosine Transform", type II, orthonormal.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from library.data.pixels.images import load_image
from library.records import Size

SIDE = 32  # of the picture that is transformed
LOW = 8  # frequencies a side
NUM_SIGNS = LOW * LOW - 1  # the mean is left out
GRID = 16  # cells a side
NUM_BYTES = NUM_SIGNS + GRID * GRID * 3
_LEAST = 8.0  # smaller coefficients count as 0: a quarter of a grey level on average


class PictureHash(NamedTuple):
    """What a picture looks like.

    Attributes:
        signs: -1, 0 or 1. Shape [63], int8.
        colours: Mean red, green and blue of each cell. Shape [16, 16, 3], uint8.
    """

    signs: np.ndarray
    colours: np.ndarray

    def to_bytes(self) -> bytes:
        """All of it, `NUM_BYTES` long."""
        return self.signs.tobytes() + self.colours.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> PictureHash:
        """From `to_bytes`.

        Raises:
            ValueError: The data has another length.
        """
        if len(data) != NUM_BYTES:
            raise ValueError(f"{len(data)} bytes instead of {NUM_BYTES}")
        signs = np.frombuffer(data, np.int8, NUM_SIGNS)
        return cls(signs, np.frombuffer(data, np.uint8, offset=NUM_SIGNS).reshape(GRID, GRID, 3))


def hash_file(path: Path, size: Size | None = None) -> PictureHash:
    """Decode a picture, as small as its format gives quickly, and hash it.

    Args:
        path: The file.
        size: What its header said.

    Raises:
        DatasetError: It cannot be decoded, or has another size.
    """
    return hash_image(load_image(path, size, least=Size(SIDE, SIDE)))


def hash_image(image: Image.Image) -> PictureHash:
    """Hash a picture.

    Args:
        image: RGB.
    """
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), np.float64)
    frequencies = (_cosines() @ grey @ _cosines().T)[:LOW, :LOW].ravel()[1:]
    signs = np.where(np.abs(frequencies) < _LEAST, 0, np.sign(frequencies)).astype(np.int8)
    return PictureHash(signs, np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX), np.uint8))


@cache
def _cosines() -> np.ndarray:
    """The orthonormal transform. Shape [SIDE, SIDE]; a row for each frequency."""
    steps = np.arange(SIDE)
    table = np.cos(np.pi * (2 * steps[None, :] + 1) * steps[:, None] / (2 * SIDE)) * np.sqrt(2 / SIDE)
    table[0] /= np.sqrt(2)
    return table
