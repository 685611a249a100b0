"""The pictures that the tiny model learns: one large thing of some colour before a white or black background.

    python -m examples.tiny_sd.pictures FOLDER [--count 240] [--seed 0]

They are pictures of the world of examples/tiny_sd3, whose judge says what they show.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from examples.tiny_sd3.draw import draw
from examples.tiny_sd3.world import COLOURS, SHAPES, Scene, plain, single, stands_out
from library.rng import python_stream


class Variety(NamedTuple):
    """What a thing and its picture can be.

    Attributes:
        colours: Of the thing, where the background lets it be seen.
        shapes: Of the thing.
        backgrounds: Names of plain ones.
        reaches: From the middle of the thing to its edge, in pixels: least and most.
        shift: That the thing may be off the middle, in pixels.
    """

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    backgrounds: tuple[str, ...]
    reaches: tuple[float, float]
    shift: float


FEW = Variety(
    ("red", "yellow", "green", "blue", "black"),
    ("circle", "square", "triangle"),
    (plain("white"), plain("black")),
    (19.0, 24.0),
    2.0,
)
"""What the model learns."""
MORE = Variety(COLOURS, SHAPES, (plain("white"), plain("gray"), plain("black")), (17.0, 24.0), 3.0)
"""What the autoencoder learns."""


def large_thing(seed: int, index: int, variety: Variety = FEW) -> Scene:
    """The picture of this number."""
    draws = python_stream(seed, "tiny_sd_pictures", index)
    background = draws.choice(variety.backgrounds)
    colour = draws.choice([name for name in variety.colours if stands_out(name, background)])
    what = single(draws.choice(variety.shapes), colour, background, reach=draws.uniform(*variety.reaches))
    (thing,) = what.things
    right, down = (draws.uniform(-variety.shift, variety.shift) for _ in range(2))
    return what._replace(things=(thing._replace(x=thing.x + right, y=thing.y + down),))


def write_pictures(folder: Path, count: int, *, seed: int = 0) -> dict[str, str]:
    """Write 0000.png with the caption file 0000.txt, and so on. The same seed gives the same pictures.

    Args:
        folder: Made if it does not exist.
        count: Of pictures.
        seed: Of all of them.

    Returns:
        {"0000": its caption}
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions = {}
    for index in range(count):
        what = large_thing(seed, index)
        draw(what).save(folder / f"{index:04}.png")
        (folder / f"{index:04}.txt").write_text(what.caption + "\n", encoding="utf-8", newline="\n")
        captions[f"{index:04}"] = what.caption
    return captions


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw the pictures that the tiny model learns, with captions.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    write_pictures(args.folder, args.count, seed=args.seed)


if __name__ == "__main__":
    main()
