"""What is on a picture of the drawing model's world, found by counting pixels."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy
from PIL import Image

from examples.draw_pictures import COLOURS

_FILL = {"square": 0.91, "circle": 0.77, "triangle": 0.52, "star": 0.41}  # of the box around it; edges are blurred


class Seen(NamedTuple):
    """What a picture shows. The shape is empty where there is nothing before the background."""

    colour: str
    shape: str
    background: str


def look(image: Image.Image) -> Seen:
    """Nearest colours by majority: of the border for the background, of what differs from it for the shape."""
    pixels = numpy.asarray(image.convert("RGB")).astype(float)
    table = numpy.array(list(COLOURS.values()), dtype=float)
    nearest = ((pixels[:, :, None] - table) ** 2).sum(-1).argmin(-1)  # [H, W]
    border = numpy.concatenate([nearest[0], nearest[-1], nearest[:, 0], nearest[:, -1]])
    background = _commonest(border)
    inside = nearest[nearest != background]
    names = list(COLOURS)
    if len(inside) < 0.01 * nearest.size:
        return Seen(names[background], "", names[background])
    colour = _commonest(inside)
    rows, columns = numpy.nonzero(nearest == colour)
    box = (numpy.ptp(rows) + 1) * (numpy.ptp(columns) + 1)
    fill = len(rows) / box
    return Seen(names[colour], min(_FILL, key=lambda shape: abs(_FILL[shape] - fill)), names[background])


def _commonest(numbers: numpy.ndarray) -> int:
    return int(Counter(numbers.tolist()).most_common(1)[0][0])
