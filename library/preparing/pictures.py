"""The pictures of a folder that a tool goes through, and the text files beside them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from library.data.files.listing import FolderWords, list_folder
from library.data.findings import Fault
from library.data.problems import first_names
from library.errors import DatasetError
from library.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Pictures:
    """What a folder holds.

    Attributes:
        root: The folder.
        paths: Pictures of types that can be read, in natural order.
        names: Their paths below the root, with slashes.
        left_out: Pictures of types that cannot be read, with the reason.
        other_files: Names of the files that are no pictures, by folder.
    """

    root: Path
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    left_out: tuple[Fault, ...]
    other_files: Mapping[Path, frozenset[str]] = field(default_factory=dict)


def find_pictures(root: Path, *, is_recursive: bool, name: str = "TRAIN_DATA_DIR") -> Pictures:
    """List a folder; what is worth knowing about it is logged.

    Args:
        root: The folder.
        is_recursive: With its sub-folders.
        name: How the user gave it, for messages.

    Raises:
        DatasetError: The folder cannot be read, or has no pictures.
    """
    words = FolderWords(name, recursive="give --recursive", each="name one of them", remove="")
    listing = list_folder(root, "", is_recursive=is_recursive, words=words)
    if listing.findings.problems:
        raise DatasetError("; ".join(f"{problem.removesuffix('.')}." for problem in listing.findings.problems))
    for remark in listing.findings.remarks:
        logger.info("%s.", remark)
    return Pictures(root, listing.images, listing.names, listing.findings.left_out, listing.other_files)


def text_file_of(picture: Path, extension: str) -> Path:
    """The text file that belongs to a picture: beside it, of the same stem.

    Args:
        picture: Its path.
        extension: With its dot, for instance ".txt".
    """
    return picture.with_name(os.path.splitext(picture.name)[0] + extension)


def text_file_faults(pictures: Sequence[Path], extension: str) -> dict[Path, Fault]:
    """{picture: what keeps it from having a text file of its own}."""
    folders = {
        picture: Fault(picture, f"cannot have a text file, {file.name} is a folder; rename the folder")
        for picture in pictures
        if (file := text_file_of(picture, extension)).is_dir()
    }
    return {**folders, **shared_text_files(pictures, extension)}


def is_blank(file: Path, most: int) -> bool:
    """Whether a text file has nothing but blanks in it. One that cannot be read has something.

    Args:
        file: It is there.
        most: Larger files, in bytes, are not looked into.
    """
    try:
        return file.stat().st_size <= most and not file.read_bytes().strip()
    except OSError:
        return False


def shared_text_files(pictures: Sequence[Path], extension: str) -> dict[Path, Fault]:
    """{picture: fault} of those whose text file would belong to another picture too: a.png and a.jpg share a.txt.

    A training refuses such pictures, since it cannot tell whose caption it is. All that share a file have one text.
    """
    owners: defaultdict[Path, list[Path]] = defaultdict(list)
    for picture in pictures:
        owners[text_file_of(picture, extension)].append(picture)
    return {
        picture: Fault(group[0], _shared_words(file, group[1:]), picture)
        for file, group in owners.items()
        if len(group) > 1
        for picture in group
    }


def _shared_words(file: Path, others: Sequence[Path]) -> str:
    """What is said of the first picture, for all that share the file."""
    names = first_names([other.name for other in others])
    return f"shares the text file {file.name} with {names}; rename all but one of them"
