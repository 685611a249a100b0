"""Which files are written for a picture, which belong to it, and what is in their way."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

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


def associated_files(
    pictures: Collection[Path], other_files: Mapping[Path, Collection[str]]
) -> Mapping[Path, tuple[str, ...]]:
    """{picture: what follows its stem in the names of its captions and other files, for instance ".txt"}.

    A file belongs to the longest stem that its name begins with. Pictures, videos and caches belong to none.

    Args:
        pictures: All of them.
        other_files: Names of the files that are no pictures, by folder.
    """
    found = defaultdict(list)
    by_stem = {(picture.parent, stem_of(picture)): picture for picture in pictures}
    for folder, names in other_files.items():
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _NEVER_COPIED:
                continue
            while stem and (folder, stem) not in by_stem:
                stem = stem.rpartition(".")[0]
            if stem:
                found[by_stem[folder, stem]].append(name[len(stem) :])
    return {picture: tuple(endings) for picture, endings in found.items()}
