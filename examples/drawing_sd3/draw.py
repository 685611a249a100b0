"""The pictures that the drawing model knows: a coloured shape on a plain background, and what it is called.

Everything follows from a seed and a number: the same pictures are drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw

from examples.draw_pictures import COLOURS, SMOOTHING, Picture
from examples.draw_pictures import draw as draw_shape
from library.rng import python_stream

if TYPE_CHECKING:
    import random

    from torch import Tensor

SIDE = 64  # pixels
SHAPES = ("circle", "square", "triangle", "star")
REACHES = {"small": (13, 17), "large": (20, 25), "": (13, 25)}  # from the middle of a shape to its edge, in pixels
_SAYS_BACKGROUND = 0.8  # of the captions
_SHIFT = 4  # pixels that a shape may be away from the middle
_REACH_OF_SIDE = 0.38  # how draw_shape fills its picture


class Drawing(NamedTuple):
    """A picture of the drawing model's world. `size` is empty where the caption does not say it."""

    size: str
    colour: str
    shape: str
    background: str
    says_background: bool
    reach: int
    x: int
    y: int

    @property
    def caption(self) -> str:
        """What a caption file would say."""
        size = f"{self.size} " if self.size else ""
        background = f" on a {self.background} background" if self.says_background else ""
        return f"a {size}{self.colour} {self.shape}{background}"


def drawing(seed: int, index: int) -> Drawing:
    """The picture of this number."""
    draws = python_stream(seed, "drawing_sd3", index)
    size = draws.choice(list(REACHES))
    colour, background = draws.sample(list(COLOURS), 2)
    reach = draws.randint(*REACHES[size])
    x, y = (SIDE // 2 + draws.randint(-_SHIFT, _SHIFT) for _ in range(2))
    shape, says_background = draws.choice(SHAPES), draws.random() < _SAYS_BACKGROUND
    return Drawing(size, colour, shape, background, says_background, reach, x, y)


def draw(what: Drawing) -> Image.Image:
    """The picture in RGB, SIDE pixels a side."""
    side = round(what.reach / _REACH_OF_SIDE)
    shape = draw_shape(Picture(what.colour, what.shape, what.background, side, side))
    image = Image.new("RGB", (SIDE, SIDE), COLOURS[what.background])
    image.paste(shape, (what.x - side // 2, what.y - side // 2))
    return image


def draw_anything(seed: int, index: int) -> Image.Image:
    """A picture of no caption: a few ellipses, boxes, rings and lines in any colour. The autoencoder learns on them."""
    draws = python_stream(seed, "drawing_sd3_anything", index)
    side = SIDE * SMOOTHING
    image = Image.new("RGB", (side, side), _any_colour(draws))
    pen = ImageDraw.Draw(image)
    for _ in range(draws.randint(2, 7)):
        (left, right), (top, bottom) = (sorted(draws.sample(range(side), 2)) for _ in range(2))
        kind, colour, width = draws.choice(("ellipse", "box", "ring", "line")), _any_colour(draws), draws.randint(8, 32)
        if kind == "ellipse":
            pen.ellipse((left, top, right, bottom), fill=colour)
        elif kind == "box":
            pen.rectangle((left, top, right, bottom), fill=colour)
        elif kind == "ring":
            pen.ellipse((left, top, right, bottom), outline=colour, width=width)
        else:
            pen.line((left, top, right, bottom), fill=colour, width=width)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _any_colour(draws: random.Random) -> tuple[int, ...]:
    if draws.random() < 0.5:
        return draws.choice(list(COLOURS.values()))
    return tuple(draws.randint(16, 250) for _ in range(3))


def as_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Pictures as uint8. Shape [B, 3, SIDE, SIDE]."""
    import numpy
    import torch

    return torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


def to_unit(images: Tensor) -> Tensor:
    """uint8 to float32 in -1..1."""
    return images.float() / 127.5 - 1
