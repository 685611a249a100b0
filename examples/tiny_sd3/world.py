"""The world of the small model that draws: which pictures there are, and what each is called.

A picture shows one thing or two, plain, striped or dotted, before a plain background or where a sky meets the ground.
Everything follows from a seed and a number. draw.py makes the pictures.

    scene(seed, index)                  the picture of this number: a Scene with .caption
    unseen(seed, index)                 one whose shape, colour and background never come together in `scene`
    single("star", "red", "on a blue background", pattern="striped", size="small", place="left")
    double(Thing(...), Thing(...), "above", "on sand at night")

Lengths are in pixels of a picture of SIDE pixels.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from library.rng import python_stream, stream_seed

SIDE = 64
RGB = tuple[int, int, int]

PAINTS: dict[str, RGB] = {
    "red": (210, 35, 45),
    "orange": (240, 125, 25),
    "yellow": (250, 220, 50),
    "green": (45, 175, 75),
    "blue": (40, 90, 220),
    "purple": (130, 50, 170),
    "pink": (245, 150, 190),
    "white": (250, 250, 250),
    "black": (25, 25, 28),
    "gray": (140, 140, 145),
}
COLOURS = tuple(name for name in PAINTS if name != "gray")  # of things; backgrounds can be gray, too
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
PATTERNS = ("striped", "dotted")
PLACES = {  # where a thing's middle is, from the picture's middle, in steps
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the middle": (0, 0),
    "at the top left": (-1, -1),
    "at the top right": (1, -1),
    "at the bottom left": (-1, 1),
    "at the bottom right": (1, 1),
}
RELATIONS = {"to the left of": (1, 0), "above": (0, 1)}  # where the second thing is, seen from the first
GROUNDS: dict[str, RGB] = {
    "grass": (75, 150, 55),
    "sand": (228, 198, 135),
    "snow": (240, 243, 248),
    "the sea": (25, 105, 150),
}
SKIES: dict[str, tuple[RGB, RGB]] = {  # at the top, at the horizon
    "under a blue sky": ((125, 190, 240), (125, 190, 240)),
    "at sunset": ((125, 70, 130), (250, 145, 75)),
    "at night": ((22, 22, 58), (22, 22, 58)),
}
LIGHT = {"under a blue sky": (1.0, 1.0, 1.0), "at sunset": (1.0, 0.8, 0.75), "at night": (0.4, 0.42, 0.5)}
REACHES = {"small": (13.5, 16.5), "large": (20.5, 25.0), "": (14.0, 24.0)}  # from the middle of a thing to its edge
PLACED_REACH = (12.5, 15.0)  # of a thing at a named place
SHARED_REACH = (12.0, 14.0)  # of two things in one picture
STEP = 15  # from the middle of the picture to a named place, or to one of two things
HORIZON = (36, 44)  # rows of sky, at least and at most

_SHARES = {"simple": 0.42, "pattern": 0.15, "landscape": 0.15, "two": 0.28}
_SHIFT = 3.0  # that a thing may be off its place
_APART = 90.0  # between a thing's colour and what is behind it
_INK_APART = 60.0  # between its stripes or dots and what is behind it
_HELD_OUT = 10  # one combination in as many is never drawn


class Thing(NamedTuple):
    """Something in a picture. `size` and `pattern` are empty where a caption does not say them."""

    shape: str
    colour: str
    pattern: str = ""
    size: str = ""
    reach: float = 18.0
    x: float = SIDE / 2
    y: float = SIDE / 2

    @property
    def name(self) -> str:
        """What a caption calls it."""
        words = " ".join(word for word in (self.size, self.pattern, self.colour, self.shape) if word)
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


class Scene(NamedTuple):
    """A picture.

    Attributes:
        things: One or two.
        background: "on a red background", or ground and sky: "on grass at night".
        says_background: The caption names it.
        place: Key of PLACES, or "": about the middle.
        relation: Key of RELATIONS where there are two things.
        horizon: Rows of sky.
    """

    things: tuple[Thing, ...]
    background: str
    says_background: bool = True
    place: str = ""
    relation: str = ""
    horizon: int = 40

    @property
    def caption(self) -> str:
        """What a caption file says."""
        words = [f" {self.relation} ".join(thing.name for thing in self.things), self.place]
        words.append(self.background if self.says_background else "")
        return " ".join(word for word in words if word)

    @property
    def landscape(self) -> tuple[str, str] | None:
        """Ground and sky, or None before a plain background."""
        return LANDSCAPES.get(self.background)


def plain(colour: str) -> str:
    """The name of a plain background."""
    return f"on {'an' if colour[0] in 'aeiou' else 'a'} {colour} background"


PLAINS = {plain(colour): colour for colour in PAINTS}
LANDSCAPES = {f"on {ground} {sky}": (ground, sky) for ground in GROUNDS for sky in SKIES}


def lit(ground: str, sky: str) -> RGB:
    """The colour of a ground in the light of a sky."""
    red, green, blue = (round(level * light) for level, light in zip(GROUNDS[ground], LIGHT[sky], strict=True))
    return red, green, blue


def ink(colour: str) -> RGB:
    """The colour of the stripes or dots on a thing: the same, but darker; on black things light gray."""
    if colour == "black":
        return 195, 195, 200
    red, green, blue = PAINTS[colour]
    return red // 2, green // 2, blue // 2


def behind(background: str) -> list[RGB]:
    """The colours of a background."""
    if background in PLAINS:
        return [PAINTS[PLAINS[background]]]
    ground, sky = LANDSCAPES[background]
    return [lit(ground, sky), *SKIES[sky]]


def stands_out(colour: str, background: str) -> bool:
    """Whether a thing of this colour can be seen there."""
    return min(distance(PAINTS[colour], other) for other in behind(background)) >= _APART


def distance(one: RGB, other: RGB) -> float:
    """Between two colours."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def is_held_out(shape: str, colour: str, background: str) -> bool:
    """Whether this combination is never drawn. It depends on nothing else."""
    return stream_seed(0, "tiny_sd3_held_out", shape, colour, background) % _HELD_OUT == 0


def has_held_out(what: Scene) -> bool:
    """Whether a thing of the picture is of a combination that is never drawn."""
    return any(is_held_out(thing.shape, thing.colour, what.background) for thing in what.things)


def is_clear(what: Scene) -> bool:
    """Whether stripes and dots cannot be taken for the background."""
    patterned = [ink(thing.colour) for thing in what.things if thing.pattern]
    return all(distance(dark, other) >= _INK_APART for dark in patterned for other in behind(what.background))


def scene(seed: int, index: int, kind: str = "") -> Scene:
    """The picture of this number.

    Args:
        seed: Of a set of pictures.
        index: Its number.
        kind: "simple", "pattern", "landscape" or "two"; "" for any, each with its share.
    """
    draws = python_stream(seed, "tiny_sd3_world", kind, index)
    chosen = kind or draws.choices(list(_SHARES), list(_SHARES.values()))[0]
    while True:
        what = _compose(draws, chosen)
        if is_clear(what) and not has_held_out(what):
            return what


def unseen(seed: int, index: int) -> Scene:
    """A simple picture of a combination that `scene` never has."""
    draws = python_stream(seed, "tiny_sd3_unseen", index)
    while True:
        what = _compose(draws, "simple")
        if has_held_out(what):
            return what


def single(
    shape: str, colour: str, background: str, *, pattern: str = "", size: str = "", place: str = "", reach: float = 0.0
) -> Scene:
    """One thing at its place, without chance. `reach` 0 is the usual one for its size."""
    least, most = PLACED_REACH if place else REACHES[size]
    right, down = PLACES[place] if place else (0, 0)
    x, y = SIDE / 2 + STEP * right, SIDE / 2 + STEP * down
    return Scene((Thing(shape, colour, pattern, size, reach or (least + most) / 2, x, y),), background, place=place)


def double(first: Thing, second: Thing, relation: str, background: str) -> Scene:
    """Two things at their places, without chance; of each, only shape, colour and pattern count."""
    right, down = RELATIONS[relation]
    reach, middle = sum(SHARED_REACH) / 2, SIDE / 2
    things = (
        first._replace(size="", reach=reach, x=middle - STEP * right, y=middle - STEP * down),
        second._replace(size="", reach=reach, x=middle + STEP * right, y=middle + STEP * down),
    )
    return Scene(things, background, relation=relation)


def _compose(draws: random.Random, kind: str) -> Scene:
    """A picture of this kind, perhaps of a combination that is held out."""
    is_landscape = kind == "landscape" or (kind == "two" and draws.random() < 0.15)
    background = draws.choice(list(LANDSCAPES if is_landscape else PLAINS))
    what = _two(draws, background) if kind == "two" else _one(draws, background, kind)
    return what._replace(
        says_background=is_landscape or draws.random() < 0.93,
        horizon=draws.randint(*HORIZON),
    )


def _one(draws: random.Random, background: str, kind: str) -> Scene:
    place = draws.choice(list(PLACES)) if kind != "landscape" and draws.random() < 0.35 else ""
    size = draws.choice(("small", "") if place else ("small", "large", "large", "", ""))
    is_patterned = kind == "pattern" or (kind == "landscape" and draws.random() < 0.2)
    pattern = draws.choice(PATTERNS) if is_patterned else ""
    what = single(draws.choice(SHAPES), _colour(draws, background), background, pattern=pattern, size=size, place=place)
    least, most = PLACED_REACH if place else REACHES[size]
    reach = draws.uniform((least + most) / 2 if pattern else least, most)  # a pattern needs room
    return what._replace(things=(_moved(draws, what.things[0]._replace(reach=reach), _SHIFT),))


def _two(draws: random.Random, background: str) -> Scene:
    colour = _colour(draws, background)
    others = [name for name in COLOURS if name != colour and stands_out(name, background)]
    things = [
        Thing(draws.choice(SHAPES), paint, draws.choice(PATTERNS) if draws.random() < 0.12 else "")
        for paint in (colour, draws.choice(others))
    ]
    what = double(things[0], things[1], draws.choice(list(RELATIONS)), background)
    placed = [thing._replace(reach=draws.uniform(*SHARED_REACH)) for thing in what.things]
    return what._replace(things=tuple(_moved(draws, thing, 1.5) for thing in placed))


def _colour(draws: random.Random, background: str) -> str:
    return draws.choice([name for name in COLOURS if stands_out(name, background)])


def _moved(draws: random.Random, thing: Thing, shift: float) -> Thing:
    return thing._replace(x=thing.x + draws.uniform(-shift, shift), y=thing.y + draws.uniform(-shift, shift))


def vocabulary() -> tuple[str, ...]:
    """Every word of a caption, in a fixed order."""
    texts = ["a an", *PLAINS, *LANDSCAPES, *PLACES, *RELATIONS, *SHAPES, *COLOURS, *PATTERNS, *filter(None, REACHES)]
    return tuple(dict.fromkeys(word for text in texts for word in text.split()))
