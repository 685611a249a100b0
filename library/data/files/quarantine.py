"""Moving pictures that cannot be used out of the way, together with their caption files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from library.data.files.headers import IMAGE_SUFFIXES
from library.data.findings import Fault
from library.errors import OutputError

FOLDER = ".quarantine"  # in the picture's folder; names with a dot are never scanned


def quarantine(faults: Sequence[Fault]) -> list[tuple[Path, Path]]:
    """Move the pictures of faults into a folder beside them. Nothing is overwritten.

    Args:
        faults: Pictures that are gone already are passed over.

    Returns:
        (from, to) of every file that was moved.

    Raises:
        OutputError: A file cannot be moved.
    """
    moved = []
    for picture in dict.fromkeys(fault.picture for fault in faults):
        if not picture.is_file():
            continue
        for path in (picture, *_captions_of(picture)):
            place = _free_place(path.parent / FOLDER / path.name)
            try:
                place.parent.mkdir(exist_ok=True)
                path.rename(place)
            except OSError as error:
                raise OutputError(
                    f"{path} cannot be moved to {place.parent} ({error.strerror or error}). "
                    "Make the folder writable, or use --on_bad_file=skip."
                ) from None
            moved.append((path, place))
    return moved


def _captions_of(picture: Path) -> list[Path]:
    """Files of the picture's stem that are no pictures, unless another picture shares them."""
    names = [name for name in os.listdir(picture.parent) if Path(name).stem == picture.stem]
    others = [name for name in names if name != picture.name]
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in others):
        return []
    return [picture.with_name(name) for name in sorted(others)]


def _free_place(place: Path) -> Path:
    number, free = 1, place
    while free.exists():
        number += 1
        free = place.with_name(f"{place.stem} ({number}){place.suffix}")
    return free
