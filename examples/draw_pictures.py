"""Draw the example pictures and write their captions: coloured shapes on plain backgrounds.

    python -m examples.draw_pictures [FOLDER]

The pictures in examples/pictures were made by this script. It draws the same ones again.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

FOLDER = Path(__file__).resolve().parent / "pictures"
SMOOTHING = 4  # drawn this much larger, then reduced

COLOURS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (36, 94, 196),
    "yellow": (244, 200, 48),
    "purple": (130, 70, 170),
    "white": (244, 244, 240),
    "black": (32, 32, 36),
}


class Picture(NamedTuple):
    """One picture: what is on it, its size in pixels and its file type."""

    colour: str
    shape: str
    background: str
    width: int
    height: int
    suffix: str = "png"

    @property
    def caption(self) -> str:
        """What the caption file says."""
        return f"a {self.colour} {self.shape} on a {self.background} background"


PICTURES = (
    Picture("red", "circle", "white", 64, 64),
    Picture("blue", "circle", "yellow", 96, 64),
    Picture("green", "circle", "black", 64, 96, "jpg"),
    Picture("red", "square", "blue", 64, 64),
    Picture("yellow", "square", "purple", 96, 64),
    Picture("white", "square", "green", 80, 80, "jpg"),
    Picture("blue", "triangle", "white", 64, 64),
    Picture("yellow", "triangle", "black", 64, 96),
    Picture("purple", "triangle", "yellow", 96, 64, "jpg"),
    Picture("red", "star", "white", 64, 64),
    Picture("yellow", "star", "blue", 80, 80),
    Picture("white", "star", "red", 64, 96, "jpg"),
)


def draw(picture: Picture) -> Image.Image:
    """The picture in RGB: its shape in the middle, as large as fits with a margin."""
    width, height = picture.width * SMOOTHING, picture.height * SMOOTHING
    image = Image.new("RGB", (width, height), COLOURS[picture.background])
    pen, colour = ImageDraw.Draw(image), COLOURS[picture.colour]
    x, y, radius = width / 2, height / 2, 0.38 * min(width, height)
    if picture.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _corners(picture.shape)], fill=colour)
    return image.resize((picture.width, picture.height), Image.Resampling.LANCZOS)


def _corners(shape: str) -> list[tuple[float, float]]:
    """Corners around the origin, the first one at the top for triangle and star, at most 1 away."""
    count, turn = {"square": (4, math.pi / 4), "triangle": (3, 0.0), "star": (10, 0.0)}[shape]
    corners = []
    for index in range(count):
        angle = turn + 2 * math.pi * index / count
        reach = 0.45 if shape == "star" and index % 2 else 1.0
        corners.append((reach * math.sin(angle), -reach * math.cos(angle)))
    return corners


def main() -> None:
    """Draw all pictures into the folder named on the command line, or into examples/pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        stem = f"{picture.colour}_{picture.shape}"
        options = {"quality": 92} if picture.suffix == "jpg" else {"optimize": True}
        draw(picture).save(folder / f"{stem}.{picture.suffix}", **options)
        (folder / f"{stem}.txt").write_text(picture.caption + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
