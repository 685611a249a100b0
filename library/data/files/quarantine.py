"""Moving pictures that cannot be used out of the way, together with their caption files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from library.data.files.caption_hints import CAPTION_SUFFIXES
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.findings import Fault
from library.data.problems import first_names
from library.errors import OutputError
from library.log import get_logger

logger = get_logger(__name__)

_SIDECARS = (".json", ".xml", ".xmp", ".yaml", ".yml")  # what programs and downloads keep beside a picture
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
    extensions = tuple(caption_extensions)
    for picture in _movable(faults, used):
        for path in (picture, *CaptionsBeside(extensions).of(picture)):  # listed anew, as files have moved
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


class _Listed(NamedTuple):
    """A folder, by stem: how many pictures have it, and names of captions and of other files."""

    pictures: Counter[str]
    captions: dict[str, list[str]]
    sidecars: dict[str, list[str]]


class CaptionsBeside:
    """Finds the caption files of pictures. Each folder is listed once, so no file may be moved meanwhile.

    Args:
        extensions: What captions end in, beside the usual endings.
    """

    def __init__(self, extensions: Iterable[str] = ()) -> None:
        self.endings = {*CAPTION_SUFFIXES, *(extension.lower() for extension in extensions)}
        self._folders: dict[Path, _Listed] = {}

    def of(self, picture: Path) -> list[Path]:
        """The picture's caption files by name, unless another picture shares them."""
        folder = picture.parent
        if folder not in self._folders:
            self._folders[folder] = self._listed(folder)
        pictures, captions, _ = self._folders[folder]
        stem = picture.stem
        others = pictures[stem] - (picture.suffix.lower() in IMAGE_SUFFIXES)
        return [] if others > 0 else [folder / name for name in captions.get(stem, ())]

    def sidecars_of(self, picture: Path) -> list[Path]:
        """What else there is of the picture's name and tells of it, unless another picture shares it."""
        captions = set(self.of(picture))
        pictures, _, sidecars = self._folders[picture.parent]
        others = pictures[picture.stem] - (picture.suffix.lower() in IMAGE_SUFFIXES)
        found = [] if others > 0 else [picture.parent / name for name in sidecars.get(picture.stem, ())]
        return [path for path in found if path not in captions]

    def _listed(self, folder: Path) -> _Listed:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
        pictures: Counter[str] = Counter()
        captions: dict[str, list[str]] = {}
        sidecars: dict[str, list[str]] = {}
        for name in names:
            stem, suffix = os.path.splitext(name)
            pictures[stem] += suffix.lower() in IMAGE_SUFFIXES
            if suffix.lower() in _SIDECARS:
                sidecars.setdefault(stem, []).append(name)
            for ending in self.endings:
                if name.lower().endswith(ending):
                    captions.setdefault(name[: -len(ending)], []).append(name)
        return _Listed(pictures, captions, sidecars)


def free_place(place: Path) -> Path:
    """The path, or where something is there already one with a number."""
    number, free = 1, place
    while os.path.lexists(free):
        number += 1
        free = place.with_name(f"{place.stem} ({number}){place.suffix}")
    return free
