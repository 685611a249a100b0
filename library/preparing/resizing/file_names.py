"""Which files are written for a picture, which belong to it, and what is in their way."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from library.data.files.caption_hints import CAPTION_SUFFIXES
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.files.listing import OTHER_PICTURE_SUFFIXES, VIDEO_SUFFIXES
from library.data.findings import Fault
from library.errors import OptionError
from library.records import Size

CACHE_SUFFIXES = frozenset((".npz", ".safetensors"))
_LONGEST_NAME = 255  # bytes, of most file systems
_NEVER_COPIED = IMAGE_SUFFIXES | OTHER_PICTURE_SUFFIXES | VIDEO_SUFFIXES | CACHE_SUFFIXES


def refuse_overlap(source: Path, target: Path, *, is_recursive: bool) -> None:
    """Keep results from becoming pictures of the next run.

    Raises:
        OptionError: The two folders are one, one is in the other and sub-folders are read, or `target` is a file.
    """
    if target.exists() and not target.is_dir():
        raise OptionError(f"DST_IMG_FOLDER {target} is a file. Name a folder.")
    here, there = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    if here == there:
        raise OptionError(
            f"DST_IMG_FOLDER {target} is SRC_IMG_FOLDER: the next run would resize what this one writes. "
            "Name another folder."
        )
    if is_recursive and (here in there.parents or there in here.parents):
        raise OptionError(
            f"with --recursive, DST_IMG_FOLDER {target} and SRC_IMG_FOLDER {source} cannot lie in each other: results "
            "would be taken for pictures. Name a folder beside it."
        )


def stem_of(picture: Path) -> str:
    """The name without its last extension, as captions are named."""
    return os.path.splitext(picture.name)[0]


def result_name(picture: Path, resolution: Size, suffix: str) -> str:
    """For instance "cat+512x512.jpg"."""
    return f"{stem_of(picture)}+{resolution}{suffix}"


def of_one_name(pictures: Sequence[Path]) -> dict[Path, Fault]:
    """{picture: fault} of those whose results would have the name of another picture's: a.png and a.jpg."""
    owners = defaultdict(list)
    for picture in pictures:
        owners[picture.parent, os.path.normcase(stem_of(picture))].append(picture)
    return {
        picture: Fault(
            picture,
            f"and {next(other.name for other in owned if other != picture)} would be written to the same files; rename "
            "one of them",
        )
        for owned in owners.values()
        if len(owned) > 1
        for picture in owned
    }


def why_not_written(result: Path) -> str | None:
    """What keeps a result from being written beside what is there, to follow the picture's path."""
    if len(os.fsencode(result.name)) > _LONGEST_NAME:
        return f"has too long a name: {result.name} would have more than {_LONGEST_NAME} bytes; rename it"
    for suffix in (".jpg", ".png"):
        other = result.with_name(os.path.splitext(result.name)[0] + suffix)
        if other != result and other.exists():
            return f"is there as {other} from another run, and two pictures of one name share a caption; remove that"
    return None


@dataclass(frozen=True)
class AssociatedFiles:
    """Which files are captions and the like of which picture.

    Attributes:
        of: {picture: {what follows its stem, for instance ".txt": the file}}.
        of_none: Files that end as captions do and belong to no picture, or whose place another one has.
    """

    of: Mapping[Path, Mapping[str, Path]]
    of_none: tuple[Path, ...]


def associated_files(pictures: Collection[Path], other_files: Mapping[Path, Collection[str]]) -> AssociatedFiles:
    """Find the files that belong to pictures.

    A file belongs to the longest stem that its name begins with. Pictures, videos and caches belong to none. A letter
    with an accent may be one sign or two, as file systems differ in that; the picture's way goes first.

    Args:
        pictures: All of them.
        other_files: Names of the files that are no pictures, by folder.
    """
    owners = {(picture.parent, normalize("NFC", stem_of(picture))): picture for picture in pictures}
    owners |= {(picture.parent, stem_of(picture)): picture for picture in pictures}
    claims: defaultdict[tuple[Path, str], list[Path]] = defaultdict(list)
    of_none = []
    for folder, names in other_files.items():
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in _NEVER_COPIED:
                continue
            if (owned := _owner_of(name, folder, owners)) is not None:
                claims[owned].append(folder / name)
            elif suffix in CAPTION_SUFFIXES:
                of_none.append(folder / name)
    found: defaultdict[Path, dict[str, Path]] = defaultdict(dict)
    for (picture, ending), files in claims.items():
        chosen = next((file for file in files if file.name == stem_of(picture) + ending), files[0])
        found[picture][ending] = chosen
        of_none += [file for file in files if file != chosen]
    return AssociatedFiles(found, tuple(of_none))


def _owner_of(name: str, folder: Path, owners: Mapping[tuple[Path, str], Path]) -> tuple[Path, str] | None:
    """The picture whose stem a file's name begins with, and what follows the stem."""
    stem = os.path.splitext(name)[0]
    while stem:
        picture = owners.get((folder, stem)) or owners.get((folder, normalize("NFC", stem)))
        if picture is not None:
            return picture, name[len(stem) :]
        stem = stem.rpartition(".")[0]
    return None
