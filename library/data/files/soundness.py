"""Decoding every picture once before models are loaded, so that all that are damaged inside are told together.

The scan finds what headers tell; bytes that are wrong further back show only here. What was found sound is remembered
in the index and not decoded again until the file changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from library.data.files.headers import open_picture, read_orientation
from library.data.files.index import FileState, PictureIndex, file_state
from library.data.pixels.images import load_image
from library.errors import DatasetError
from library.records import ImageRecord, Size

WORTH_A_BAR = 200  # pictures
SHRINK = 8  # times: the most that a JPEG can be made smaller while it is decoded


def broken_pictures(
    records: Sequence[ImageRecord], index: PictureIndex | None = None, *, is_shown: bool = True
) -> dict[Path, str]:
    """Decode pictures and masks in threads.

    Args:
        records: The pictures; files that occur several times are decoded once.
        index: Knows what was sound before, and is told what is sound now.
        is_shown: Show a bar where it may take a while.

    Returns:
        For each picture that cannot be used, why: to follow its path, without full stop.
    """
    from tqdm import tqdm

    distinct = {record.path: record for record in records}
    states = _states(path for record in distinct.values() for path in _files_of(record))
    unknown = [record for record in distinct.values() if not _is_known(record, states, index)]
    is_short = len(unknown) < WORTH_A_BAR
    broken: dict[Path, str] = {}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        found = threads.map(_problem, unknown)
        shown = tqdm(found, "checking pictures", len(unknown), disable=is_short or not is_shown)
        for record, problem in zip(unknown, shown, strict=True):
            if problem is not None:
                broken[record.path] = problem
            elif index is not None:
                for path in _files_of(record):
                    index.remember_sound(path, states[path])
    if index is not None:
        index.save()
    return broken


def _files_of(record: ImageRecord) -> tuple[Path, ...]:
    return (record.path,) if record.mask is None else (record.path, record.mask)


def _states(paths: Iterable[Path]) -> dict[Path, FileState]:
    """The states of files that can be asked about, before they are decoded."""
    states = {}
    for path in paths:
        try:
            states[path] = file_state(path)
        except OSError:
            continue  # decoding says what is wrong
    return states


def _is_known(record: ImageRecord, states: dict[Path, FileState], index: PictureIndex | None) -> bool:
    """Whether all of a record's files were sound before, and are the same still."""
    if index is None:
        return False
    return all(path in states and index.is_sound(path, states[path]) for path in _files_of(record))


def _problem(record: ImageRecord) -> str | None:
    """What is wrong with a picture or its mask."""
    problem = _decoding_problem(record.path, record.size)
    if problem is None and record.mask is not None:
        problem = _decoding_problem(record.mask, None)
        problem = problem and f"has a mask that cannot be used: {record.mask} {problem}"
    return problem


def _decoding_problem(path: Path, size: Size | None) -> str | None:
    try:
        if not _is_decoded_small(path, size):
            load_image(path, size)
    except DatasetError as error:
        return str(error).removeprefix(f"{path} ").removesuffix(".")
    return None


def _is_decoded_small(path: Path, size: Size | None) -> bool:
    """Read all data of a JPEG but compute only a small picture of it, in a fraction of the time.

    Returns:
        Whether nothing was wrong. Else, and for other formats, the picture has to be decoded in full, which also says
        what is wrong.
    """
    try:
        with open_picture(path) as image:
            if image.format not in ("JPEG", "MPO"):
                return False
            width, height = image.size
            seen = (height, width) if read_orientation(image, path) >= 5 else (width, height)
            image.draft(None, (max(1, width // SHRINK), max(1, height // SHRINK)))
            image.load()
    except (OSError, ValueError, SyntaxError):
        return False
    return size is None or seen == size
