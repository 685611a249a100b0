"""Pairs of pictures for docs/train_lllite.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Two pictures with captions, and lines of each."""
    from PIL import Image

    for name, end, colour in (("cat", "png", "red"), ("house", "jpg", "green")):
        for room in ("my_pictures", "my_lines"):
            (folder / room).mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), colour).save(folder / "my_pictures" / f"{name}.{end}")
        (folder / "my_pictures" / f"{name}.txt").write_text(f"a {name}", encoding="utf-8")
        Image.new("RGB", (64, 64), "black").save(folder / "my_lines" / f"{name}.png")
