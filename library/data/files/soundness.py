"""Decoding every picture once before models are loaded, so that all that are damaged inside are told together.

The scan finds what headers tell; bytes that are wrong further back show only here. What was found sound is remembered
in the index and not decoded again until the file changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from library.data.files.headers import open_picture, read_orientation
from library.data.files.index import FileState, PictureIndex, file_state
from library.data.pixels.images import decode_mask, load_image
from library.errors import DatasetError, UnreadableError
from library.records import ImageRecord, Size

WORTH_A_BAR = 200  # pictures
SHRINK = 8  # times: the most that a JPEG can be made smaller while it is decoded


class Pixels(NamedTuple):
    """What decoding came to.

    Attributes:
        broken: For each picture that cannot be used, why: to follow its path, without full stop.
        black_masks: Masks that can be used but let nothing be learned.
        bad_masks: Those of the broken whose mask is what cannot be used.
    """

    broken: dict[Path, str]
    black_masks: tuple[Path, ...]
    bad_masks: frozenset[Path] = frozenset()


def broken_pictures(
    records: Sequence[ImageRecord], index: PictureIndex | None = None, *, is_shown: bool = True
) -> dict[Path, str]:
    """The pictures that `check_pixels` finds broken, and why."""
    return check_pixels(records, index, is_shown=is_shown).broken


def check_pixels(records: Sequence[ImageRecord], index: PictureIndex | None = None, *, is_shown: bool = True) -> Pixels:
    """Decode pictures and masks in threads.

    Args:
        records: The pictures; a picture that occurs several times with one mask is decoded once.
        index: Knows what was sound before, and is told what is sound now.
        is_shown: Show a bar where it may take a while.

    Raises:
        UnreadableError: The drive or its rights keep files from being read; all are listed.
    """
    from tqdm import tqdm

    distinct = {record.files: record for record in records}
    states = _states(path for record in distinct.values() for path in _files_of(record))
    unknown = [record for record in distinct.values() if not _is_known(record, states, index)]
    is_short = len(unknown) < WORTH_A_BAR
    broken: dict[Path, str] = {}
    black_masks: dict[Path, None] = {}
    bad_masks: set[Path] = set()
    unreadable: dict[str, None] = {}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        found = threads.map(_verdict, unknown)
        shown = tqdm(found, "checking pictures", len(unknown), disable=is_short or not is_shown)
        for record, verdict in zip(unknown, shown, strict=True):
            if isinstance(verdict, UnreadableError):
                unreadable[str(verdict)] = None
                continue
            if verdict.problem is not None:
                broken[record.path] = verdict.problem
            if verdict.is_of_mask:
                bad_masks.add(record.path)
            if verdict.has_black_mask and record.mask is not None:
                black_masks[record.mask] = None
            if index is not None:
                _note(record, states, index, verdict)
    if index is not None:
        index.save()
    if unreadable:
        raise UnreadableError("\n".join(unreadable))
    return Pixels(broken, tuple(black_masks), frozenset(bad_masks))


def num_never_decoded(records: Iterable[ImageRecord], index: PictureIndex) -> int:
    """How many pictures, or their masks, are not known to be sound as they are now. Nothing is decoded."""
    distinct = {record.files: record for record in records}
    states = _states(path for record in distinct.values() for path in _files_of(record))
    return len({record.path for record in distinct.values() if not _is_known(record, states, index)})


class _Verdict(NamedTuple):
    """What is wrong with a picture or its mask; None where both can be used."""

    problem: str | None = None
    has_black_mask: bool = False
    is_of_mask: bool = False


def _note(record: ImageRecord, states: dict[Path, FileState], index: PictureIndex, verdict: _Verdict) -> None:
    """Keep that files are sound; forget what their headers said where decoding says otherwise."""
    for path in _files_of(record):
        if verdict.problem is not None:
            index.forget(path)
        elif path != record.mask or not verdict.has_black_mask:  # which is to be told in every run
            index.remember_sound(path, states[path])


def _files_of(record: ImageRecord) -> tuple[Path, ...]:
    return record.files


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


def _verdict(record: ImageRecord) -> _Verdict | UnreadableError:
    """What is wrong with a picture or its mask, or what keeps them from being read."""
    try:
        problem = _decoding_problem(record.path, record.size)
        if problem is None and record.conditioning is not None:
            problem = _conditioning_problem(record.conditioning)
        if problem is not None or record.mask is None:
            return _Verdict(problem)
        return _mask_verdict(record.mask)
    except UnreadableError as error:
        return error


def _decoding_problem(path: Path, size: Size) -> str | None:
    try:
        if not _is_decoded_small(path, size):
            load_image(path, size)
    except UnreadableError:
        raise
    except DatasetError as error:
        return _without_path(error, path)
    return None


def _conditioning_problem(path: Path) -> str | None:
    try:
        load_image(path)
    except UnreadableError:
        raise
    except DatasetError as error:
        return f"has a conditioning picture that cannot be used: {path} {_without_path(error, path)}"
    return None


def _mask_verdict(mask: Path) -> _Verdict:
    try:
        values = decode_mask(mask)
    except UnreadableError:
        raise
    except DatasetError as error:
        return _Verdict(f"has a mask that cannot be used: {mask} {_without_path(error, mask)}", is_of_mask=True)
    return _Verdict(has_black_mask=values.getextrema()[1] == 0)


def _without_path(error: DatasetError, path: Path) -> str:
    return str(error).removeprefix(f"{path} ").removesuffix(".")


def _is_decoded_small(path: Path, size: Size) -> bool:
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
    return seen == size
