"""A rule on pixels that says what of a caption a picture shows. No network judges here.

The background is the candidate that the picture's left and right edge are nearest to. What differs from it is one thing
or, parted at the emptiest row or column, two; its shape is the one whose outline of the same area overlaps it best, and
its colour and pattern are those of the pixels inside that outline. Pictures of draw.py are right in everything.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from PIL import Image

from examples.tiny_sd3.draw import draw_background, draw_outline, draw_pattern
from examples.tiny_sd3.world import (
    HORIZON,
    LANDSCAPES,
    PAINTS,
    PATTERNS,
    PLACES,
    PLAINS,
    RELATIONS,
    SHAPES,
    SIDE,
    Scene,
    Thing,
)

Pixels = NDArray[numpy.float64]
Mask = NDArray[numpy.bool_]

_BACKGROUND_OFF = 25.0  # mean distance of an edge's colours from the background's, at most
_STANDS_OUT = 40.0  # distance from the background of what belongs to a thing
_COLOUR_OFF = 50.0  # distance of a thing's middle colour from its paint, at most
_MOST_OTHERS = 0.25  # share of a thing's pixels whose colour is as far from its middle colour
_LEAST_OVERLAP = 0.75  # of a thing and an outline: what both cover, of what one of them covers
_LEAST_AREA = 40  # pixels of a thing
_LEAST_INSIDE = 8  # pixels of a thing without its edge
_TWO_TONES = 45.0  # distance between the two colours of a pattern, at least
_LEAST_INK = 0.09  # share of a thing that stripes or dots cover
_LEAST_LIKENESS = 0.5  # correlation with a pattern
_LARGE = 18.5  # pixels from the middle of a large thing to its edge, at least
_AWAY = 7.5  # pixels from the middle of the picture that count as left, right, top or bottom


class Verdict(NamedTuple):
    """What of a caption is right; of two things both must be."""

    background: bool
    colour: bool
    shape: bool
    pattern: bool
    size: bool
    place: bool

    @property
    def is_right(self) -> bool:
        """Everything is."""
        return all(self)


class Found(NamedTuple):
    """A thing as the picture shows it. The shape is empty where no outline fits."""

    shape: str
    colour: str
    pattern: str
    reach: float
    x: float
    y: float


def judge(image: Image.Image, wanted: Scene) -> Verdict:
    """Compare a picture with what was asked for.

    Args:
        image: SIDE pixels a side.
        wanted: Only what its caption says counts, and a background that it leaves open may be any.
    """
    pixels = numpy.asarray(image.convert("RGB"), dtype=float)
    background, horizon, off = find_background(pixels)
    is_background = off <= _BACKGROUND_OFF and (background == wanted.background or not wanted.says_background)
    expected = numpy.asarray(draw_background(background, horizon), dtype=float)
    mask = numpy.linalg.norm(pixels - expected, axis=-1) > _STANDS_OUT
    parts = [mask] if len(wanted.things) == 1 else _split(mask, wanted.relation)
    found = [find_thing(pixels, part, thing) for part, thing in zip(parts, wanted.things, strict=True)]
    if not all(found):
        return Verdict(is_background, False, False, False, False, False)
    pairs = [(thing, what) for thing, what in zip(wanted.things, found, strict=True) if what is not None]
    return Verdict(
        is_background,
        colour=all(what.colour == thing.colour for thing, what in pairs),
        shape=all(what.shape == thing.shape for thing, what in pairs),
        pattern=all(what.pattern == thing.pattern for thing, what in pairs),
        size=all(not thing.size or (what.reach >= _LARGE) == (thing.size == "large") for thing, what in pairs),
        place=_is_placed(wanted, [what for _, what in pairs]),
    )


def find_background(pixels: Pixels) -> tuple[str, int, float]:
    """The nearest background, its rows of sky, and how far off it is on average.

    Pixels 1 to 3 from the left and from the right edge count, of each row the middle colour: a thing touches one
    edge at most.
    """
    edges = numpy.median(numpy.concatenate([pixels[:, :3], pixels[:, -3:]], axis=1), axis=1)  # [SIDE, 3]
    names, table = _backgrounds()
    off = numpy.linalg.norm(table - edges, axis=-1).mean(1)
    best = int(off.argmin())
    return *names[best], float(off[best])


@functools.cache
def _backgrounds() -> tuple[list[tuple[str, int]], Pixels]:
    """Every background with its rows of sky, and the colours of its rows. Shape [N, SIDE, 3]."""
    names = [(name, HORIZON[0]) for name in PLAINS]
    names += [(name, rows) for name in LANDSCAPES for rows in range(HORIZON[0] - 3, HORIZON[1] + 4)]
    columns = [numpy.asarray(draw_background(*name), dtype=float)[:, 0] for name in names]
    return names, numpy.stack(columns)


def _split(mask: Mask, relation: str) -> list[Mask]:
    """What is left of, or above, the emptiest column or row near the middle, and the rest."""
    axis = 1 if RELATIONS[relation][0] else 0
    counts = mask.sum(1 - axis)
    middle = SIDE // 2
    near = range(middle - 7, middle + 8)
    cut = min(near, key=lambda place: (counts[place], abs(place - middle)))
    places = numpy.arange(SIDE) if axis == 1 else numpy.arange(SIDE)[:, None]
    return [mask & (places < cut), mask & (places >= cut)]


def find_thing(pixels: Pixels, mask: Mask, wanted: Thing) -> Found | None:
    """What the masked pixels show, or None if there is nothing. `wanted` says which of two tones is the ink."""
    area = int(mask.sum())
    if area < _LEAST_AREA:
        return None
    rows, columns = numpy.nonzero(mask)
    fits = [_fit(mask, shape, area, float(columns.mean()) + 0.5, float(rows.mean()) + 0.5) for shape in SHAPES]
    overlap, best = max(fits, key=lambda fit: fit[0])
    inside = _without_edge(_outline_mask(best))
    pattern, colours = _find_pattern(best, inside, pixels[inside], wanted.colour)
    shape = best.shape if overlap >= _LEAST_OVERLAP else ""
    colour = _paint(colours) if pattern or _is_even(colours) else ""
    return Found(shape, colour, pattern, best.reach, best.x, best.y)


def _fit(mask: Mask, shape: str, area: int, x: float, y: float) -> tuple[float, Thing]:
    """Lay an outline of this area over the mask: how much they overlap at best, and there."""
    unit, right, down = _unit(shape)
    reach = math.sqrt(area / unit)
    thing = Thing(shape, "black", reach=reach, x=x - right * reach, y=y - down * reach)
    best = _overlap(mask, thing), thing
    for step in (1.0, 0.5):
        for change in ((step, 0, 0), (-step, 0, 0), (0, step, 0), (0, -step, 0), (0, 0, step), (0, 0, -step)):
            x_off, y_off, reach_off = change
            at = best[1]
            moved = at._replace(x=at.x + x_off, y=at.y + y_off, reach=at.reach + reach_off)
            best = max(best, (_overlap(mask, moved), moved), key=lambda fit: fit[0])
    return best


def _overlap(mask: Mask, thing: Thing) -> float:
    other = _outline_mask(thing)
    return float((mask & other).sum() / max(1, (mask | other).sum()))


def _outline_mask(thing: Thing) -> Mask:
    return numpy.asarray(draw_outline(thing)) > 127


def _without_edge(mask: Mask) -> Mask:
    """Pixels that have only pixels of the mask around them."""
    padded = numpy.pad(mask, 1)
    around = [padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]
    return numpy.logical_and.reduce(around)


@functools.cache
def _unit(shape: str) -> tuple[float, float, float]:
    """Area of the shape where its reach is 1, and the middle of that area from the origin."""
    reach = SIDE / 2 - 2
    rows, columns = numpy.nonzero(_outline_mask(Thing(shape, "black", reach=reach)))
    right, down = (float(places.mean() + 0.5 - SIDE / 2) / reach for places in (columns, rows))
    return len(rows) / reach**2, right, down


def _find_pattern(thing: Thing, inside: Mask, colours: Pixels, wanted: str) -> tuple[str, Pixels]:
    """The pattern whose ink lies where the picture has it, or "" for none; and the colours without the ink's.

    Args:
        thing: The best outline.
        inside: Its pixels without the edge.
        colours: Of these pixels. Shape [N, 3].
        wanted: A paint's name. Ink is darker than paint, on black lighter.
    """
    inked = _find_ink(colours, wanted)
    if inked is None:
        return "", colours
    likeness = {pattern: _likeness(thing._replace(pattern=pattern), inside, inked) for pattern in PATTERNS}
    best = max(likeness, key=lambda pattern: likeness[pattern])
    return (best, colours[~inked]) if likeness[best] >= _LEAST_LIKENESS else ("", colours)


def _find_ink(colours: Pixels, wanted: str) -> Mask | None:
    """Which pixels of a thing are ink, or None where it has one tone. Shape [N]."""
    if len(colours) < _LEAST_INSIDE:
        return None
    centred = colours - colours.mean(0)
    along = centred @ numpy.linalg.svd(centred, full_matrices=False)[2][0]
    is_high = along > (numpy.quantile(along, 0.03) + numpy.quantile(along, 0.97)) / 2
    if not 0 < is_high.sum() < len(colours):
        return None
    low, high = (numpy.median(colours[is_high == side], axis=0) for side in (False, True))
    inked = is_high if (high.sum() > low.sum()) == (wanted == "black") else ~is_high
    is_pattern = numpy.linalg.norm(high - low) >= _TWO_TONES and _LEAST_INK <= inked.mean() <= 1 - _LEAST_INK
    return inked if is_pattern else None


def _is_even(colours: Pixels) -> bool:
    """Whether most of these colours are near their middle one."""
    off = numpy.linalg.norm(colours - numpy.median(colours, axis=0), axis=-1) if len(colours) else numpy.zeros(1)
    return bool((off > _COLOUR_OFF).mean() <= _MOST_OTHERS)


def _paint(colours: Pixels) -> str:
    """The name of the paint nearest to the middle one of these colours; "" if that is far off."""
    if not len(colours):
        return ""
    middle = numpy.median(colours, axis=0)
    names = list(PAINTS)
    off = [float(numpy.linalg.norm(middle - numpy.array(PAINTS[name]))) for name in names]
    return names[int(numpy.argmin(off))] if min(off) <= _COLOUR_OFF else ""


def _likeness(thing: Thing, inside: Mask, inked: Mask) -> float:
    """Correlation with the pattern, which may be off by a little or by half a step."""
    shifts = [(x, y) for x in (-2, -1, 0, 1, 2) for y in (-4, -2, -1, 0, 1, 2, 4)]
    best = 0.0
    for right, down in shifts:
        drawn = numpy.asarray(draw_pattern(thing._replace(x=thing.x + right, y=thing.y + down)), dtype=float)[inside]
        if drawn.std() > 0:
            best = max(best, float(numpy.corrcoef(drawn, inked)[0, 1]))
    return best


def _is_placed(wanted: Scene, found: list[Found]) -> bool:
    """Whether things are where the caption says, or about the middle where it says nothing."""
    middles = [(what.x - SIDE / 2, what.y - SIDE / 2) for what in found]
    if wanted.relation:
        right, down = RELATIONS[wanted.relation]
        places = [(-right, -down), (right, down)]
    else:
        places = [PLACES[wanted.place] if wanted.place else (0, 0)]
    return all(
        _side(off) == side
        for middle, place in zip(middles, places, strict=True)
        for off, side in zip(middle, place, strict=True)
    )


def _side(off: float) -> int:
    """-1, 0 or 1: before, about or behind the middle."""
    return 0 if abs(off) < _AWAY else 1 if off > 0 else -1
