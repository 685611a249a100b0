"""How well copies of pictures are recognised, and pictures that only resemble each other told apart.

    python -m benchmarks.lookalikes [FOLDER ...]

Without folders: the example pictures, and the landscapes of the preview tests. Every picture is changed as copies are,
and compared with itself; then all pictures are compared with each other, of which equal files do not count.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageEnhance

from library.data.files.headers import IMAGE_SUFFIXES
from library.data.pixels.perceptual_hash import PictureHash, hash_image
from library.data.report.lookalikes import lookalikes

ROOT = Path(__file__).resolve().parent.parent
DISTANCES = (0, 2, 4, 6, 8)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Saved as JPEG and read again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Resized with Lanczos."""
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def trimmed(image: Image.Image, share: float) -> Image.Image:
    """Without a share of width and height on each side."""
    left, top = round(image.width * share), round(image.height * share)
    return image.crop((left, top, image.width - left, image.height - top))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 90": lambda image: jpeg(image, 90),
    "JPEG, quality 50": lambda image: jpeg(image, 50),
    "half the size": lambda image: scaled(image, 0.5),
    "3/4 of the size": lambda image: scaled(image, 0.75),
    "twice the size": lambda image: scaled(image, 2),
    "half the size, JPEG 70": lambda image: jpeg(scaled(image, 0.5), 70),
    "10% more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "10% brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "1% off each side": lambda image: trimmed(image, 0.01),
    "2% off each side": lambda image: trimmed(image, 0.02),
    "3% off each side": lambda image: trimmed(image, 0.03),
    "5% off each side": lambda image: trimmed(image, 0.05),
    "5% off one side": lambda image: image.crop((0, 0, round(image.width * 0.95), image.height)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def is_alike(first: PictureHash, second: PictureHash, distance: int) -> bool:
    """Whether the doctor says so."""
    return bool(lookalikes([first, second], distance))


def table(folder: Path) -> list[str]:
    """Rows of a table: the share of copies that is found with each distance, and pairs wrongly found."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    images = [Image.open(path).convert("RGB") for path in paths]
    hashes = [hash_image(image) for image in images]
    titles = " | ".join(f"distance {distance}" for distance in DISTANCES)
    lines = [f"{folder.name}, {len(images)} pictures", f"| | {titles} |", "| --- |" + " --- |" * len(DISTANCES)]
    for name, change in COPIES.items():
        pairs = [(own, hash_image(change(image))) for own, image in zip(hashes, images, strict=True)]
        shares = [sum(is_alike(*pair, distance) for pair in pairs) / len(pairs) for distance in DISTANCES]
        lines.append(f"| {name} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    contents = [path.read_bytes() for path in paths]
    distinct = [(a, b) for a, b in combinations(range(len(hashes)), 2) if contents[a] != contents[b]]
    wrong = [sum(is_alike(hashes[a], hashes[b], distance) for a, b in distinct) for distance in DISTANCES]
    return [*lines, "| pairs of different pictures | " + " | ".join(map(str, wrong)) + " |", ""]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each folder."""
    given = sys.argv[1:] if argv is None else argv
    folders = [Path(argument) for argument in given] or [ROOT / "examples/pictures", ROOT / "examples/zorp"]
    with tempfile.TemporaryDirectory() as name:
        if not given:
            sys.path.insert(0, str(ROOT / "tests"))
            from preview_scenes import SCENES, draw_scene

            folders.append(Path(name) / "landscapes")
            folders[-1].mkdir()
            for number, scene in enumerate(SCENES):
                draw_scene(*scene, number).save(folders[-1] / f"{number}.png")
        for folder in folders:
            sys.stdout.write("\n".join(table(folder)) + "\n")


if __name__ == "__main__":
    main()
