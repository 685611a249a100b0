"""Draw pictures of the small model's world into a folder, each with its caption file.

python -m examples.tiny_sd3.pictures FOLDER [--count 20000] [--seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.tiny_sd3.draw import draw
from examples.tiny_sd3.world import scene


def write_pictures(folder: Path, count: int, *, seed: int = 0) -> None:
    """Write 00000.png with 00000.txt, and so on.

    Args:
        folder: Made if it does not exist.
        count: Of pictures.
        seed: The same one gives the same pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        what = scene(seed, index)
        draw(what).save(folder / f"{index:05}.png")
        (folder / f"{index:05}.txt").write_text(what.caption + "\n", encoding="utf-8", newline="\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw pictures of the small model's world, with captions.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    write_pictures(args.folder, args.count, seed=args.seed)


if __name__ == "__main__":
    main()
