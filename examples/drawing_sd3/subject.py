"""Pictures of something the drawing model does not know: the sks toy, a yellow face. For training a LoRA on it.

    python -m examples.drawing_sd3.subject FOLDER [COUNT] [BACKGROUND]

Each picture has the toy at another place, in another size and before the next background, and a caption file that says
so: "a sks toy on a green background". With a BACKGROUND all pictures have that one, and captions are only "a sks toy".
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: the project is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from PIL import Image, ImageDraw

from examples.draw_pictures import COLOURS, SMOOTHING
from examples.drawing_sd3.draw import SIDE
from library.rng import python_stream

BACKGROUNDS = ("blue", "red", "green", "white")  # in turn; the LoRA has to draw it on others too
_REACHES = (17, 23)  # from the middle to the edge, in pixels
_SHIFT = 5  # pixels that the toy may be away from the middle


class Toy(NamedTuple):
    """Where the toy is on a picture of SIDE pixels."""

    background: str
    x: float
    y: float
    reach: float


def toy(seed: int, index: int, background: str | None = None) -> Toy:
    """The toy of this number."""
    draws = python_stream(seed, "drawing_sd3_subject", index)
    reach = draws.uniform(*_REACHES)
    x, y = (SIDE / 2 + draws.uniform(-_SHIFT, _SHIFT) for _ in range(2))
    return Toy(background or BACKGROUNDS[index % len(BACKGROUNDS)], x, y, reach)


def draw_toy(what: Toy) -> Image.Image:
    """A yellow face with black eyes and a red mouth, in RGB."""
    image = Image.new("RGB", (SIDE * SMOOTHING, SIDE * SMOOTHING), COLOURS[what.background])
    pen = ImageDraw.Draw(image)

    def disc(right: float, down: float, reach: float, colour: str) -> None:
        """A disc beside the middle of the face, all in parts of the face's reach."""
        x, y = what.x + right * what.reach, what.y + down * what.reach
        box = (x - reach * what.reach, y - reach * what.reach, x + reach * what.reach, y + reach * what.reach)
        pen.ellipse(tuple(SMOOTHING * edge for edge in box), fill=COLOURS[colour])

    disc(0, 0, 1, "yellow")
    for side in (-1, 1):
        disc(0.38 * side, -0.3, 0.22, "black")
    for step in range(21):  # the mouth: discs along an arc that opens upwards
        angle = math.radians(25 + 130 * step / 20)
        disc(0.6 * math.cos(angle), 0.6 * math.sin(angle), 0.12, "red")
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def write_pictures(folder: Path, count: int = 12, background: str | None = None, *, seed: int = 0) -> None:
    """Draw this many pictures with their caption files.

    Args:
        folder: Made if it does not exist.
        count: Of pictures.
        background: Of all of them, and then no caption says so; None takes each of BACKGROUNDS in turn.
        seed: Of places and sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        what = toy(seed, index, background)
        caption = "a sks toy" if background else f"a sks toy on a {what.background} background"
        draw_toy(what).save(folder / f"toy_{index + 1:02}.png", optimize=True)
        (folder / f"toy_{index + 1:02}.txt").write_text(caption + "\n", encoding="utf-8", newline="\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw pictures of the sks toy, with captions.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=12)
    parser.add_argument("background", choices=list(COLOURS), nargs="?", help="of all pictures; captions do not say it")
    args = parser.parse_args(argv)
    write_pictures(args.folder, args.count, args.background)


if __name__ == "__main__":
    main()
