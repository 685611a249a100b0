"""What the commands of docs/sweep.md read: the pictures of the examples, and prompts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, models: Mapping[str, Path]) -> None:
    """Put them into the folder. The models are there."""
    shutil.copytree(ROOT / "examples" / "pictures", folder / "my_pictures")
    (folder / "my_prompts.txt").write_text("a red star --w 64 --h 64 --d 1 --s 2\n", encoding="utf-8")
