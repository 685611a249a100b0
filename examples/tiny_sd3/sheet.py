"""Draw a sheet of what a model makes of some captions, each under its picture.

python -m examples.tiny_sd3.sheet MODEL SHEET.png [--lora FILE]
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the project is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from PIL import Image, ImageDraw, ImageFont

CAPTIONS = (
    "a large red circle on a blue background",
    "a large yellow star on a purple background",
    "a pink heart on a black background",
    "a small white cross at the top right on a green background",
    "a small orange triangle at the bottom left on a white background",
    "a large blue square on an orange background",
    "a large striped red heart on a white background",
    "a large dotted blue circle on a yellow background",
    "a striped black star on a pink background",
    "a large dotted purple square on a gray background",
    "a large yellow circle on the sea at sunset",
    "a white star on snow at night",
    "a large red triangle on grass under a blue sky",
    "a pink heart on sand at sunset",
    "a large orange cross on the sea at night",
    "a black square on sand under a blue sky",
    "a yellow star above a blue circle on a white background",
    "a red heart to the left of a white square on a green background",
    "a green triangle above an orange square on a purple background",
    "a blue cross to the left of a pink star on a gray background",
)
LARGER = 4
COLUMNS = 5
_MARGIN = 14  # pixels of the sheet
_LETTERS = 15  # height of the letters
_WIDEST = 33  # letters in a line
_LINES = 3


def make_sheet(images: Sequence[Image.Image], captions: Sequence[str], *, columns: int = COLUMNS) -> Image.Image:
    """Pictures of one size, enlarged without smoothing, with their captions."""
    side = images[0].width * LARGER
    across, down = side + _MARGIN, side + _MARGIN + (_LINES + 0.7) * _LETTERS * 1.2
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * across + _MARGIN, round(rows * down) + _MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=_LETTERS)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = _MARGIN + index % columns * across, _MARGIN + round(index // columns * down)
        sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, top))
        lines = "\n".join(textwrap.wrap(caption, _WIDEST))
        pen.multiline_text((left, top + side + 4), lines, fill="black", font=font, spacing=2)
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the sheet that the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw a sheet of what a model makes of some captions.")
    parser.add_argument("model", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--lora", type=Path, help="a network that is put beside the model")
    parser.add_argument("--captions", type=Path, help="a file of captions, one in a line, in place of the usual ones")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    from examples.tiny_sd3.painter import Painter, seeds_for

    captions = args.captions.read_text(encoding="utf-8").splitlines() if args.captions else list(CAPTIONS)
    painter = Painter(args.model)
    if args.lora:
        painter.add_lora(args.lora)
    images = painter.paint(captions, seeds_for(args.seed, "sheet", len(captions)))
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    make_sheet(images, captions).save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()
