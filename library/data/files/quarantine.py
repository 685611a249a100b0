"""Moving pictures that cannot be used out of the way, together with their caption files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from library.data.files.caption_hints import CAPTION_SUFFIXES
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.findings import Fault
from library.data.problems import first_names
from library.errors import OutputError
from library.log import get_logger

logger = get_logger(__name__)

FOLDER = ".quarantine"  # in the picture's folder; names with a dot are never scanned


def quarantine(
    faults: Sequence[Fault], *, used: Iterable[Path] = (), caption_extensions: Iterable[str] = ()
) -> list[tuple[Path, Path]]:
    """Move the pictures of faults into a folder beside them. Nothing is overwritten.

    Args:
        faults: Pictures that are gone already are passed over.
        used: Files that are needed where they are, though one subset cannot use them.
        caption_extensions: What captions end in, beside the usual endings.

    Returns:
        (from, to) of every file that was moved.

    Raises:
        OutputError: A file cannot be moved.
    """
    moved = []
    endings = {*CAPTION_SUFFIXES, *(extension.lower() for extension in caption_extensions)}
    for picture in _movable(faults, used):
        for path in (picture, *captions_beside(picture, endings)):
            place = free_place(path.parent / FOLDER / path.name)
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


def _movable(faults: Sequence[Fault], used: Iterable[Path]) -> list[Path]:
    """The pictures of faults that are there and needed by nobody, under no name."""
    pictures = [picture for picture in dict.fromkeys(fault.picture for fault in faults) if picture.is_file()]
    places = {os.path.realpath(path) for path in used} if pictures else set()
    kept = [picture.name for picture in pictures if os.path.realpath(picture) in places]
    if kept:
        logger.warning("not moved, as another subset uses them: %d (%s)", len(kept), first_names(kept))
    return [picture for picture in pictures if os.path.realpath(picture) not in places]


def captions_beside(picture: Path, endings: Collection[str]) -> list[Path]:
    """The picture's caption files, unless another picture shares them.

    Args:
        picture: The file.
        endings: What captions end in, in small letters.
    """
    with os.scandir(picture.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(picture.stem) and entry.is_file()]
    others = [Path(name) for name in names if name != picture.name]
    if any(name.stem == picture.stem and name.suffix.lower() in IMAGE_SUFFIXES for name in others):
        return []
    return [picture.with_name(name) for name in sorted(names) if name[len(picture.stem) :].lower() in endings]


def free_place(place: Path) -> Path:
    """The path, or where something is there already one with a number."""
    number, free = 1, place
    while free.exists():
        number += 1
        free = place.with_name(f"{place.stem} ({number}){place.suffix}")
    return free
