"""Pictures with colour maps: what a ControlNet-LLLite learns from in the benchmark and in tests.

    python -m examples.tiny_sdxl.pairs FOLDER [--count 120] [--seed 0]

FOLDER/pictures has pictures and captions that do not name the colour of the thing; FOLDER/maps the colour map of each:
the picture brought to 4 x 4 pixels and back.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from examples.tiny_sd.pictures import large_thing
from examples.tiny_sd3.draw import draw
from examples.tiny_sdxl.words import without_colour

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES, MAPS = "pictures", "maps"
_CELLS = 4


def colour_map(picture: Image) -> Image:
    """A picture as squares of its mean colours, in its own size."""
    from PIL.Image import Resampling

    return picture.resize((_CELLS, _CELLS), Resampling.BOX).resize(picture.size, Resampling.NEAREST)


def write_pairs(folder: Path, count: int, *, seed: int = 0) -> None:
    """Write 0000.png with 0000.txt into pictures/, 0000.png into maps/, and so on."""
    for name in (PICTURES, MAPS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        what = large_thing(seed, index)
        picture = draw(what)
        picture.save(folder / PICTURES / f"{index:04}.png")
        colour_map(picture).save(folder / MAPS / f"{index:04}.png")
        caption = without_colour(what.caption, what.things[0].colour)
        (folder / PICTURES / f"{index:04}.txt").write_text(caption + "\n", encoding="utf-8", newline="\n")


def dataset_config(folder: Path, batch: int) -> str:
    """Text of a dataset file for them."""
    return (
        f"[[datasets]]\nresolution = 64\nbatch_size = {batch}\n\n[[datasets.subsets]]\n"
        f"image_dir = {(folder / PICTURES).as_posix()!r}\nconditioning_data_dir = {(folder / MAPS).as_posix()!r}\n"
        "caption_extension = '.txt'\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw pictures and their colour maps.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    write_pairs(args.folder, args.count, seed=args.seed)


if __name__ == "__main__":
    main()
