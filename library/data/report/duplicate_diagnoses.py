"""Diagnoses of pictures that occur twice: equal files, pictures that look alike, and both across the validation split.

Files are read here to be compared, but not decoded: hashes come in as an argument.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.data.files.fixing import Remedy
from library.data.files.quarantine import CaptionsBeside
from library.data.pixels.perceptual_hash import PictureHash
from library.data.report.diagnosis import Case, Diagnosis
from library.data.report.lookalikes import lookalikes
from library.data.report.plan_diagnoses import set_aside
from library.errors import UnreadableError
from library.records import ImageRecord


@dataclass(frozen=True)
class _File:
    """A file that pictures are of, under one name or several.

    Attributes:
        path: Its first name.
        place: Where it really is.
        records: All that are of it.
    """

    path: Path
    place: str
    records: tuple[ImageRecord, ...]

    @property
    def subsets(self) -> set[tuple[int, int]]:
        return {(record.dataset, record.subset) for record in self.records}

    @property
    def uses(self) -> set[tuple[int, int, str]]:
        """In which subset it is trained with which caption."""
        return {(record.dataset, record.subset, record.caption) for record in self.records}


def duplicate_diagnoses(
    records: Sequence[ImageRecord],
    hashes: Mapping[Path, PictureHash],
    *,
    num_training: int,
    distance: int,
    caption_endings: Iterable[str],
    pinned: Collection[str] = (),
) -> Iterator[Diagnosis]:
    """Compare all pictures. Links, and one name in several subsets, are one picture.

    Args:
        records: All pictures, training first.
        hashes: Of those that can be decoded.
        num_training: How many records train.
        distance: How many signs of hashes may differ.
        caption_endings: Endings of caption files, beside the usual ones.
        pinned: Real paths of files that stay where they are, as a metadata file or a link names them.

    Raises:
        UnreadableError: A file is gone, or the drive fails.
    """
    files = _files_of(records)
    equal = list(_equal_files([file.path for file in files]))
    seen = [index for index, file in enumerate(files) if file.path in hashes]
    found = lookalikes([hashes[files[index].path] for index in seen], distance)
    alike = [[seen[index] for index in group] for group in found]
    beside = CaptionsBeside(caption_endings)
    exact_cases = tuple(_exact_case([files[index] for index in group], beside, pinned) for group in equal)
    yield Diagnosis("warning", "exact-duplicate", "equal files", "Keep one of each, and raise num_repeats", exact_cases)
    yield _leaks(
        [[files[index] for index in group] for group in joined_groups((*equal, *alike))], records, num_training
    )
    firsts = {index: group[0] for group in equal for index in group}
    near = [group for group in alike if len({firsts.get(index, index) for index in group}) > 1]
    near_cases = tuple(Case(tuple(files[index].path for index in group)) for group in near)
    advice = "Look at them side by side, and keep the best one"
    yield Diagnosis("warning", "near-duplicate", "pictures that look alike", advice, near_cases)


def joined_groups(groups: Iterable[Sequence[int]]) -> list[list[int]]:
    """Groups that have a member in common as one."""
    parents: dict[int, int] = {}

    def root(member: int) -> int:
        while parents.setdefault(member, member) != member:
            parents[member] = parents[parents[member]]
            member = parents[member]
        return member

    for first, *others in groups:
        for other in others:
            parents[root(other)] = root(first)
    joined: dict[int, list[int]] = {}
    for member in parents:
        joined.setdefault(root(member), []).append(member)
    return list(joined.values())


def _files_of(records: Sequence[ImageRecord]) -> list[_File]:
    by_place: dict[str, list[ImageRecord]] = {}
    for record in records:
        by_place.setdefault(os.path.realpath(record.path), []).append(record)
    return [_File(own[0].path, place, tuple(own)) for place, own in by_place.items()]


def _equal_files(paths: Sequence[Path]) -> Iterator[list[int]]:
    """Groups of files with the same bytes, as places in the list; only those of one length are read."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        by_length[_state(path).st_size].append(index)
    for group in by_length.values():
        if len(group) < 2:
            continue
        by_content: defaultdict[bytes, list[int]] = defaultdict(list)
        for index in group:
            by_content[_digest(paths[index])].append(index)
        yield from (equal for equal in by_content.values() if len(equal) > 1)


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _gone(path, error) from None


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise _gone(path, error) from None
    return digest.digest()


def _gone(path: Path, error: OSError) -> UnreadableError:
    return UnreadableError(
        f"{path} cannot be read any more ({error.strerror or error}). Check the drive, and start again."
    )


def _exact_case(group: Sequence[_File], beside: CaptionsBeside, pinned: Collection[str]) -> Case:
    """All but one can go, if nothing tells them apart and nothing else is bound to them. It is named first."""
    first = _original(group)
    others = [file for file in group if file is not first]
    remedies: list[Remedy] = []
    reasons: dict[str, None] = {}
    for file in others:
        reason = _why_needed(file, first, beside)
        own = () if reason else set_aside(file.path, beside, pinned)
        if own:
            remedies += own
        else:
            reasons[reason or "named by a metadata file or a link"] = None
    return Case((first.path, *(file.path for file in others)), " and ".join(reasons), tuple(remedies))


def _original(group: Sequence[_File]) -> _File:
    """The one that stays: whose name others extend, as copies do ("cat (1)", "Copy of cat"); of the shortest
    name; the oldest."""
    stems = [file.path.stem.casefold() for file in group]

    def rank(file: _File) -> tuple[int, int, int]:
        stem = file.path.stem.casefold()
        extended = sum(stem != other and stem in other for other in stems)
        return -extended, len(stem), _state(file.path).st_mtime_ns

    return min(group, key=rank)


def _why_needed(file: _File, kept: _File, beside: CaptionsBeside) -> str | None:
    """Why a training needs a file though another one has the same bytes; None where it does not."""
    if not file.subsets <= kept.subsets:
        return "in several subsets"
    if not file.uses <= kept.uses or not _texts(file.path, beside).items() <= _texts(kept.path, beside).items():
        return "with different captions"
    return "with masks" if any(record.mask is not None for record in file.records) else None


def _texts(picture: Path, beside: CaptionsBeside) -> dict[str, bytes]:
    """The caption files of a picture, read or not in a training: {ending: content}."""
    try:
        return {path.name[len(picture.stem) :].lower(): path.read_bytes() for path in beside.of(picture)}
    except OSError as error:
        raise _gone(Path(error.filename or picture), error) from None


def _leaks(groups: Iterable[Sequence[_File]], records: Sequence[ImageRecord], num_training: int) -> Diagnosis:
    """Groups with members on both sides of the validation split; regularisation pictures are on neither."""
    own = {id(record) for record in records[num_training:] if not record.is_reg}
    cases = []
    for group in groups:
        is_kept = [any(id(record) in own for record in file.records) for file in group]
        is_trained = [not all(record.is_reg for record in file.records) for file in group]
        if any(is_kept) and any(trained and not kept for trained, kept in zip(is_trained, is_kept, strict=True)):
            names = ", ".join(file.path.name for file, kept in zip(group, is_kept, strict=True) if kept)
            cases.append(Case(tuple(file.path for file in group), f"kept for validation: {names}"))
    summary, advice = "pictures both trained and kept for validation", "Move all copies to one side"
    return Diagnosis("warning", "leak", summary, advice, tuple(cases))
