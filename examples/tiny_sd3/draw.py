"""The pictures of world.py, and pictures of nothing in particular for the autoencoder."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from examples.tiny_sd3.world import LANDSCAPES, PAINTS, PLAINS, SIDE, SKIES, Scene, Thing, ink, lit
from library.rng import python_stream

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from torch import Tensor

SMOOTHING = 4  # drawn this much larger, then reduced
STRIPE = 8  # pixels from one stripe to the next
DOT = 9, 2.6  # pixels from one dot to the next, and from a dot's middle to its edge


def draw(what: Scene) -> Image.Image:
    """The picture in RGB, SIDE pixels a side."""
    image = draw_background(what.background, what.horizon)
    for thing in what.things:
        paint = Image.new("RGB", (SIDE, SIDE), PAINTS[thing.colour])
        if thing.pattern:
            paint.paste(ink(thing.colour), mask=draw_pattern(thing))
        image.paste(paint, mask=draw_outline(thing))
    return image


def draw_background(background: str, horizon: int) -> Image.Image:
    """What is behind the things, in RGB. `horizon`: rows of sky."""
    if background in PLAINS:
        return Image.new("RGB", (SIDE, SIDE), PAINTS[PLAINS[background]])
    ground, sky = LANDSCAPES[background]
    image = Image.new("RGB", (SIDE, SIDE), lit(ground, sky))
    pen, (top, bottom) = ImageDraw.Draw(image), SKIES[sky]
    for row in range(horizon):
        part = row / (horizon - 1)
        colour = tuple(round(high + part * (low - high)) for high, low in zip(top, bottom, strict=True))
        pen.line((0, row, SIDE, row), fill=colour)
    return image


def draw_outline(thing: Thing) -> Image.Image:
    """Where the thing is: 255 inside, 0 outside, in between on the edge. One channel."""
    mask = Image.new("L", (SIDE * SMOOTHING, SIDE * SMOOTHING))
    corners = [
        (SMOOTHING * (thing.x + thing.reach * x), SMOOTHING * (thing.y + thing.reach * y))
        for x, y in outline(thing.shape)
    ]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    return mask.resize((SIDE, SIDE), Image.Resampling.BOX)


def draw_pattern(thing: Thing) -> Image.Image:
    """Stripes or dots over the whole picture, counted from the thing's middle: 255 is ink. One channel."""
    mask = Image.new("L", (SIDE * SMOOTHING, SIDE * SMOOTHING))
    pen = ImageDraw.Draw(mask)
    if thing.pattern == "striped":
        for number in range(-SIDE // STRIPE - 1, SIDE // STRIPE + 2):
            top = thing.y + STRIPE * (number + 0.25)
            pen.rectangle((0, SMOOTHING * top, SMOOTHING * SIDE, SMOOTHING * (top + STRIPE / 2) - 1), fill=255)
        return mask.resize((SIDE, SIDE), Image.Resampling.BOX)
    step, radius = DOT
    for row in range(-SIDE // step - 1, SIDE // step + 2):
        for column in range(-SIDE // step - 1, SIDE // step + 2):
            x, y = thing.x + step * (column + row % 2 / 2), thing.y + step * row
            pen.ellipse(tuple(SMOOTHING * edge for edge in (x - radius, y - radius, x + radius, y + radius)), fill=255)
    return mask.resize((SIDE, SIDE), Image.Resampling.BOX)


@functools.cache
def outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners around the origin, y down, at most 1 away."""
    if shape == "circle":
        return _round(48, lambda _: 0.9)
    if shape == "star":
        return _round(10, lambda number: 0.45 if number % 2 else 1.0)
    if shape == "triangle":
        return _round(3, lambda _: 1.0)
    if shape == "square":
        return _round(4, lambda _: 1.0, turn=math.pi / 4)
    if shape == "heart":
        angles = [2 * math.pi * number / 48 for number in range(48)]
        heights = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
        return tuple((math.sin(a) ** 3 * 0.95, -(h + 2.5) / 16 * 0.95) for a, h in zip(angles, heights, strict=True))
    if shape == "cross":
        arm, end = 0.32, 0.92
        corner = ((arm, -end), (arm, -arm), (end, -arm))
        turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
        return tuple((x * cos - y * sin, x * sin + y * cos) for cos, sin in turns for x, y in corner)
    raise ValueError(f"no shape is called {shape!r}")


def _round(count: int, reach: Callable[[int], float], turn: float = 0.0) -> tuple[tuple[float, float], ...]:
    angles = [turn + 2 * math.pi * number / count for number in range(count)]
    return tuple((reach(n) * math.sin(angle), -reach(n) * math.cos(angle)) for n, angle in enumerate(angles))


def draw_anything(seed: int, index: int) -> Image.Image:
    """A picture of no caption: ellipses, boxes, rings, lines and polygons in any colour, some of them small.

    The autoencoder learns on them, so that pictures outside the world survive it.
    """
    draws = python_stream(seed, "tiny_sd3_anything", index)
    side = SIDE * SMOOTHING
    image = Image.new("RGB", (side, side), _any_colour(draws))
    if draws.random() < 0.3:
        image.paste(_any_colour(draws), (0, draws.randint(0, side), side, side))
    pen = ImageDraw.Draw(image)
    for _ in range(draws.randint(2, 9)):
        _draw_any_form(pen, draws)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _draw_any_form(pen: ImageDraw.ImageDraw, draws: random.Random) -> None:
    side = SIDE * SMOOTHING
    colour, width = _any_colour(draws), draws.randint(6, 32)
    reach = draws.choice((12, 24, 48, 96)) * draws.uniform(0.7, 1.4)
    x, y, tall = draws.uniform(0, side), draws.uniform(0, side), draws.uniform(0.4, 1.0)
    box = (x - reach, y - reach * tall, x + reach, y + reach * tall)
    kind = draws.choice(("ellipse", "ellipse", "box", "ring", "line", "arc", "polygon"))
    if kind == "ellipse":
        pen.ellipse(box, fill=colour)
    elif kind == "box":
        pen.rectangle(box, fill=colour)
    elif kind == "ring":
        pen.ellipse(box, outline=colour, width=width)
    elif kind == "line":
        pen.line((x, y, draws.uniform(0, side), draws.uniform(0, side)), fill=colour, width=width)
    elif kind == "arc":
        start = draws.uniform(0, 360)
        pen.arc(box, start, start + draws.uniform(60, 240), fill=colour, width=width)
    else:
        count, turn = draws.randint(3, 7), draws.uniform(0, 6)
        angles = [turn + 2 * math.pi * number / count for number in range(count)]
        reaches = [reach * draws.uniform(0.4, 1.0) for _ in angles]
        pen.polygon([(x + r * math.sin(a), y + r * math.cos(a)) for a, r in zip(angles, reaches, strict=True)], colour)


def _any_colour(draws: random.Random) -> tuple[int, ...]:
    if draws.random() < 0.4:
        return draws.choice(list(PAINTS.values()))
    return tuple(draws.randint(8, 252) for _ in range(3))


def as_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Pictures as uint8. Shape [B, 3, SIDE, SIDE]."""
    import numpy
    import torch

    return torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


def to_unit(images: Tensor) -> Tensor:
    """uint8 to float32 in -1..1."""
    return images.float() / 127.5 - 1
