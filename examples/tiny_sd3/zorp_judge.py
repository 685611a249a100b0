"""A rule on pixels that says whether a picture shows a zorp. No network judges here.

What differs from the background, with what that encloses, is the thing. The outline of the same area is laid over it;
there is a zorp where both overlap well, and where the outline's body is turquoise, its eye white and its pupil dark.
Pictures of zorp.py are right in everything, and none of draw.py shows a zorp.
"""

from __future__ import annotations

import functools
import math

import numpy
from numpy.typing import NDArray
from PIL import Image

from examples.tiny_sd3.draw import draw_background
from examples.tiny_sd3.judge import Found, find_background
from examples.tiny_sd3.world import PAINTS, PLACES, RGB, SIDE, STEP, Scene
from examples.tiny_sd3.zorp import BODY, EYE, NAME, PUPIL, PUPIL_REACH, WHITE, body_mask, disc_mask

Pixels = NDArray[numpy.float64]
Mask = NDArray[numpy.bool_]

_STANDS_OUT = 40.0  # distance from the background of what belongs to the thing
_BODY_OFF = 80.0  # distance of the middle colour of its body from turquoise, at most
_LEAST_AREA = 150  # pixels of a body with its eye
_LEAST_OVERLAP = 0.75  # of thing and outline: what both cover, of what one of them covers
_WHITE_OFF = 100.0  # distance of the middle colour of its white from white, at most
_PUPIL_OFF = 130.0  # distance of the middle colour of its pupil from black, at most
_EYE_OFF = (0, -1, 1, -2, 2)  # pixels that the eye may be off its place
_LARGE = 20.0  # pixels from the middle to the tips of the horns of a large one, at least
_AWAY = STEP / 2  # pixels from the middle of the picture that count as left, right, top or bottom


def find_zorp(image: Image.Image) -> Found | None:
    """Where the zorp is, or None if there is none. `image`: SIDE pixels a side."""
    pixels = numpy.asarray(image.convert("RGB"), dtype=float)
    background, horizon, _ = find_background(pixels)
    behind = numpy.asarray(draw_background(background, horizon), dtype=float)
    mask = numpy.linalg.norm(pixels - behind, axis=-1) > _STANDS_OUT
    mask |= _enclosed(mask)
    if mask.sum() < _LEAST_AREA:
        return None
    overlap, reach, x, y = _fit(mask)
    body = _is_inside(body_mask(reach, x, y)) & ~_is_inside(disc_mask(EYE[2] * reach, *_eye(reach, x, y)))
    is_zorp = overlap >= _LEAST_OVERLAP and _is_turquoise(pixels[body]) and _has_eye(pixels, reach, x, y)
    return Found(NAME, "", "", reach, x, y) if is_zorp else None


def is_as_asked(image: Image.Image, wanted: Scene) -> bool:
    """Whether there is a zorp of the size, at the place and before the background that the caption says."""
    found, thing = find_zorp(image), wanted.things[0]
    if found is None or find_background(numpy.asarray(image.convert("RGB"), dtype=float))[0] != wanted.background:
        return False
    if thing.size and (found.reach >= _LARGE) != (thing.size == "large"):
        return False
    return (_side(found.x), _side(found.y)) == (PLACES[wanted.place] if wanted.place else (0, 0))


def _side(place: float) -> int:
    """-1, 0 or 1: before, about or behind the middle."""
    off = place - SIDE / 2
    return 0 if abs(off) < _AWAY else 1 if off > 0 else -1


def _is_turquoise(pixels: Pixels) -> bool:
    """Whether the middle colour is near to a zorp's, and nearer than to any paint. `pixels`: shape [N, 3]."""
    off = _off(pixels, BODY)
    return off <= _BODY_OFF and off < min(_off(pixels, paint) for paint in PAINTS.values())


def _has_eye(pixels: Pixels, reach: float, x: float, y: float) -> bool:
    """Whether there is a white disc with a dark one in it, where the outline has them or a little off."""
    right, down = _eye(reach, x, y)
    for place in ((right + by, down + under) for by in _EYE_OFF for under in _EYE_OFF):
        eye, pupil = (_is_inside(disc_mask(part * reach, *place)) for part in (EYE[2], PUPIL_REACH))
        if _off(pixels[eye & ~pupil], WHITE) <= _WHITE_OFF and _off(pixels[pupil], PUPIL) <= _PUPIL_OFF:
            return True
    return False


def _eye(reach: float, x: float, y: float) -> tuple[float, float]:
    """The middle of the eye."""
    return x + EYE[0] * reach, y + EYE[1] * reach


def _enclosed(mask: Mask) -> Mask:
    """Pixels that have pixels of the mask on all four sides, be it far away."""
    before = [numpy.maximum.accumulate(mask, axis) for axis in (0, 1)]
    behind = [numpy.flip(numpy.maximum.accumulate(numpy.flip(mask, axis), axis), axis) for axis in (0, 1)]
    return before[0] & before[1] & behind[0] & behind[1]


def _fit(mask: Mask) -> tuple[float, float, float, float]:
    """How much an outline of this area overlaps the mask at best; its reach and middle there."""
    unit, right, down = _unit()
    reach = math.sqrt(mask.sum() / unit)
    rows, columns = numpy.nonzero(mask)
    x, y = columns.mean() + 0.5 - right * reach, rows.mean() + 0.5 - down * reach
    best = (_overlap(mask, reach, x, y), reach, x, y)
    for step in (1.0, 0.5):
        for change in ((step, 0, 0), (-step, 0, 0), (0, step, 0), (0, -step, 0), (0, 0, step), (0, 0, -step)):
            moved = [old + by for old, by in zip(best[1:], change, strict=True)]
            best = max(best, (_overlap(mask, *moved), *moved))
    return best


@functools.cache
def _unit() -> tuple[float, float, float]:
    """Area and centre of gravity of the outline of reach 1 around the origin."""
    reach = SIDE / 2 - 2
    rows, columns = numpy.nonzero(_is_inside(body_mask(reach, SIDE / 2, SIDE / 2)))
    middle = (SIDE - 1) / 2
    return len(rows) / reach**2, float(columns.mean() - middle) / reach, float(rows.mean() - middle) / reach


def _overlap(mask: Mask, reach: float, x: float, y: float) -> float:
    other = _is_inside(body_mask(reach, x, y))
    return float((mask & other).sum() / max(1, (mask | other).sum()))


def _is_inside(mask: Image.Image) -> Mask:
    return numpy.asarray(mask) > 127


def _off(pixels: Pixels, colour: RGB) -> float:
    """Distance of the middle colour from another. `pixels`: shape [N, 3], with N above 0."""
    return float(numpy.linalg.norm(numpy.median(pixels, axis=0) - numpy.array(colour)))
