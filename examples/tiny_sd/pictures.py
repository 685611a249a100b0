"""The pictures that the tiny model learns: one large thing of some colour before a white, gray or black background.

    python -m examples.tiny_sd.pictures FOLDER [--count 600] [--seed 0]

They are pictures of the world of examples/tiny_sd3, whose judge says what they show.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.tiny_sd3.draw import draw
from examples.tiny_sd3.world import SHAPES, Scene, plain, single, stands_out
from library.rng import python_stream

COLOURS = ("red", "yellow", "green", "blue", "purple", "pink", "black")
BACKGROUNDS = tuple(plain(colour) for colour in ("white", "gray", "black"))
REACHES = (17.0, 24.0)  # from the middle of a thing to its edge, in pixels
SHIFT = 3.0  # that a thing may be off the middle


def large_thing(seed: int, index: int) -> Scene:
    """The picture of this number."""
    draws = python_stream(seed, "tiny_sd_pictures", index)
    background = draws.choice(BACKGROUNDS)
    colour = draws.choice([name for name in COLOURS if stands_out(name, background)])
    what = single(draws.choice(SHAPES), colour, background, reach=draws.uniform(*REACHES))
    (thing,) = what.things
    right, down = draws.uniform(-SHIFT, SHIFT), draws.uniform(-SHIFT, SHIFT)
    return what._replace(things=(thing._replace(x=thing.x + right, y=thing.y + down),))


def write_pictures(folder: Path, count: int, *, seed: int = 0) -> None:
    """Write 0000.png with the caption file 0000.txt, and so on. The same seed gives the same pictures.

    Args:
        folder: Made if it does not exist.
        count: Of pictures.
        seed: Of all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        what = large_thing(seed, index)
        draw(what).save(folder / f"{index:04}.png")
        (folder / f"{index:04}.txt").write_text(what.caption + "\n", encoding="utf-8", newline="\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw the pictures that the tiny model learns, with captions.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    write_pictures(args.folder, args.count, seed=args.seed)


if __name__ == "__main__":
    main()
