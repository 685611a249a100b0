"""Where a folder that is missing may be instead."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path


def nearest_folder(folder: Path) -> Path | None:
    """The folder that exists where `folder` is looked for: one of almost this name, else the innermost one above it."""
    missing = Path(os.path.abspath(folder))
    for parent in missing.parents:
        if parent.is_dir():
            near = get_close_matches(missing.name, _folders_in(parent), n=1)
            return parent / near[0] if near else parent
        missing = parent
    return None


def place_hint(folder: Path, source: str) -> str:
    """What follows "does not exist" in a message.

    Args:
        folder: As it was named.
        source: The dataset file; relative folders may have been meant to start there.
    """
    if not folder.is_absolute():
        beside = Path(source).parent / folder
        if beside.is_dir():
            return f" in the current folder {Path.cwd()}, where paths start; it is at {beside}"
    nearest = nearest_folder(folder)
    return "" if nearest is None else f"; the nearest folder that does is {nearest}"


def _folders_in(parent: Path) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
