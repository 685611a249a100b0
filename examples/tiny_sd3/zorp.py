"""The zorp: a new thing, of which the small model knows nothing. Its pictures and captions, for training a LoRA on it.

    python -m examples.tiny_sd3.zorp FOLDER [--count 20] [--background white]

A zorp is turquoise, which no thing of world.py is, and has two horns, two feet and one large eye. Each picture has it
in another size, at another place and before the next of BACKGROUNDS, and a caption that says so: "a zorp at the top on
a red background". With --background all pictures have that one, and captions do not say it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from examples.tiny_sd3.draw import SMOOTHING, draw_background
from examples.tiny_sd3.world import HORIZON, PLAINS, RGB, SIDE, Scene, single
from library.rng import python_stream

NAME = "zorp"
BODY: RGB = (40, 210, 205)
WHITE: RGB = (250, 250, 250)
PUPIL: RGB = (25, 25, 28)
EYE = 0.0, -0.1, 0.46  # right and down from the middle, and to the edge, in parts of the reach
PUPIL_REACH = 0.24
BACKGROUNDS = (  # in turn; the LoRA has to put it before others, too
    "on a red background",
    "on grass under a blue sky",
    "on a white background",
    "on a black background",
    "on sand at night",
    "on a blue background",
    "on snow at sunset",
    "on a yellow background",
    "on a green background",
    "on the sea under a blue sky",
)
COUNT, SEED = 20, 4  # of the pictures in examples/zorp
REACHES = {"large": (22.0, 26.0), "": (18.0, 23.0)}  # from its middle to the tips of its horns; none is small
PLACED = ("in the middle", "on the left", "on the right", "at the top", "at the bottom")
PLACED_REACH = (17.0, 18.5)  # at a named place
_SHIFT = 3.0  # pixels that it may be off its place


def scene(seed: int, index: int, background: str = "") -> Scene:
    """The training picture of this number. `background` "" takes the next of BACKGROUNDS."""
    return _moved(python_stream(seed, "tiny_sd3_zorp", index), background or BACKGROUNDS[index % len(BACKGROUNDS)])


def asked_for(seed: int, index: int, backgrounds: Sequence[str]) -> Scene:
    """What to ask a trained model for: any size or place, before one of these backgrounds."""
    draws = python_stream(seed, "tiny_sd3_zorp_asked", index)
    return _moved(draws, draws.choice(backgrounds))


def _moved(draws: random.Random, background: str) -> Scene:
    place = draws.choice(PLACED) if draws.random() < 0.4 else ""
    size = "" if place else draws.choice(list(REACHES))
    reach = draws.uniform(*(PLACED_REACH if place else REACHES[size]))
    what = single(NAME, "", background, size=size, place=place, reach=reach)
    thing = what.things[0]
    x, y = (middle + draws.uniform(-_SHIFT, _SHIFT) for middle in (thing.x, thing.y))
    return what._replace(things=(thing._replace(x=x, y=y),), horizon=draws.randint(*HORIZON))


def draw_zorp(what: Scene) -> Image.Image:
    """The picture in RGB, SIDE pixels a side."""
    thing = what.things[0]
    image = draw_background(what.background, what.horizon)
    image.paste(BODY, mask=body_mask(thing.reach, thing.x, thing.y))
    right, down, reach = EYE
    x, y = thing.x + right * thing.reach, thing.y + down * thing.reach
    image.paste(WHITE, mask=disc_mask(reach * thing.reach, x, y))
    image.paste(PUPIL, mask=disc_mask(PUPIL_REACH * thing.reach, x, y))
    return image


def body_mask(reach: float, x: float, y: float) -> Image.Image:
    """The outline, eye included: 255 inside, 0 outside. One channel."""
    mask = Image.new("L", (SIDE * SMOOTHING, SIDE * SMOOTHING))
    pen = ImageDraw.Draw(mask)

    def at(right: float, down: float) -> tuple[float, float]:
        return SMOOTHING * (x + right * reach), SMOOTHING * (y + down * reach)

    pen.ellipse((*at(-0.8, -0.72), *at(0.8, 0.72)), fill=255)
    for side in (-1, 1):
        pen.polygon([at(0.78 * side, -0.2), at(0.66 * side, -1.0), at(0.12 * side, -0.6)], fill=255)
        left, end = sorted((0.12 * side, 0.58 * side))
        pen.rounded_rectangle((*at(left, 0.4), *at(end, 0.95)), radius=SMOOTHING * 0.15 * reach, fill=255)
    return mask.resize((SIDE, SIDE), Image.Resampling.BOX)


def disc_mask(reach: float, x: float, y: float) -> Image.Image:
    """A disc: 255 inside, 0 outside. One channel."""
    mask = Image.new("L", (SIDE * SMOOTHING, SIDE * SMOOTHING))
    box = (x - reach, y - reach, x + reach, y + reach)
    ImageDraw.Draw(mask).ellipse(tuple(SMOOTHING * edge for edge in box), fill=255)
    return mask.resize((SIDE, SIDE), Image.Resampling.BOX)


def write_pictures(folder: Path, count: int = COUNT, background: str = "", *, seed: int = SEED) -> None:
    """Draw this many pictures with their caption files.

    Args:
        folder: Made if it does not exist.
        count: Of pictures.
        background: Of all of them, and then no caption says so; "" takes each of BACKGROUNDS in turn.
        seed: Of places and sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        what = scene(seed, index, background)._replace(says_background=not background)
        draw_zorp(what).save(folder / f"{NAME}_{index + 1:02}.png", optimize=True)
        (folder / f"{NAME}_{index + 1:02}.txt").write_text(what.caption + "\n", encoding="utf-8", newline="\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw pictures of the zorp, with captions.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--background", choices=list(PLAINS.values()), help="of all; captions do not say it")
    args = parser.parse_args(argv)
    named = {colour: name for name, colour in PLAINS.items()}
    write_pictures(args.folder, args.count, named[args.background] if args.background else "")


if __name__ == "__main__":
    main()
