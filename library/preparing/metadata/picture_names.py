"""Which entries of a metadata file mean which pictures of a folder, however their names are spelled.

Programs name a picture by its path below the folder, with slashes or backslashes, with or without its ending, by its
absolute path, or by a path that starts in the current folder; and with "ü" as one sign or as two.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from library.data.files.metadata_file import NamedPictures
from library.data.problems import dataset_error
from library.preparing.pictures import Pictures


class NameMatch(NamedTuple):
    """What the names of a file mean.

    Attributes:
        renamed: {name: how it shall be spelled} of entries of the folder's pictures that are spelled otherwise.
        others: Names of entries whose picture is not one of these.
        absent: Those of `others` for which there is no picture anywhere.
    """

    renamed: Mapping[str, str]
    others: tuple[str, ...]
    absent: tuple[str, ...]


def picture_names(pictures: Pictures, *, is_full_path: bool) -> dict[Path, str]:
    """{picture: its name in a metadata file}: the path below the folder with slashes, or the absolute path."""
    names = map(os.path.abspath, pictures.paths) if is_full_path else pictures.names
    return dict(zip(pictures.paths, names, strict=True))


def match_names(file: Path, entries: Iterable[str], names: Mapping[Path, str], root: Path) -> NameMatch:
    """Find the pictures of entries.

    Args:
        file: The metadata file, for messages.
        entries: Names of its entries.
        names: {picture of the folder: how it shall be named}.
        root: The folder.

    Raises:
        DatasetError: Two entries mean one picture, or one may mean several.
    """
    finder = _Finder(root, names)
    owners: dict[str, str] = {}
    renamed, others, absent, problems = {}, [], [], []
    for entry in entries:
        found = finder.find(entry)
        place = found[0] if found else ""
        if len(found) > 1:
            listed = ", ".join(map(os.path.basename, found))
            problems.append(f'{file}: entry "{entry}" may be one of several pictures: {listed}; write the whole name')
        elif not found:
            absent.append(entry)
            others.append(entry)
        elif (owner := owners.setdefault(place, entry)) != entry:
            problems.append(f'{file}: the entries "{owner}" and "{entry}" are both of {place}; remove one')
        elif place not in finder.wanted:
            others.append(entry)
        elif finder.wanted[place] != entry:
            renamed[entry] = finder.wanted[place]
    if problems:
        raise dataset_error("metadata", problems, "problems")
    return NameMatch(renamed, tuple(others), tuple(absent))


class _Finder:
    """Looks for pictures as a training does, and where other programs may have written their names from.

    Attributes:
        wanted: {place: name} of the pictures of the folder. A place is one text for all spellings of a path.
    """

    def __init__(self, root: Path, names: Mapping[Path, str]) -> None:
        self.root = root
        self.files = NamedPictures()
        self.folders: dict[str, str] = {}
        self.wanted = {self._place(os.fspath(path)): name for path, name in names.items()}
        self.looks: dict[str, list[str]] = defaultdict(list)  # places by what they look like
        for place in self.wanted:
            for spelling in (place, os.path.splitext(place)[0]):
                self.looks[unicodedata.normalize("NFC", spelling)].append(place)

    def find(self, name: str) -> list[str]:
        """Places of the picture; several where it cannot be told which."""
        spellings = tuple(dict.fromkeys((name, name.replace("\\", "/"))))
        for spelling in spellings:
            if places := self._places(os.path.join(self.root, spelling)):
                return places
        for spelling in spellings:  # from the current folder, but only pictures of this one: a training starts at root
            places = self._places(spelling)
            if len(places) == 1 and places[0] in self.wanted:
                return places
        for spelling in spellings:
            for path in (os.path.join(self.root, spelling), spelling):
                if alike := self.looks.get(unicodedata.normalize("NFC", self._place(path))):
                    return sorted(alike)
        return []

    def _places(self, path: str) -> list[str]:
        return sorted({self._place(found) for found in self.files.find(path)})

    def _place(self, path: str) -> str:
        """The last link is not followed: it is a picture of its own."""
        folder, name = os.path.split(path)
        if folder not in self.folders:
            self.folders[folder] = os.path.realpath(folder)
        return os.path.normcase(os.path.join(self.folders[folder], name))
