"""Diagnoses of pictures that occur twice: equal files, pictures that look alike, and both across the validation split.

Files are read here to be compared, but not decoded: hashes come in as an argument.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from library.data.files.fixing import Remedy
from library.data.pixels.perceptual_hash import PictureHash
from library.data.report.diagnosis import Case, Diagnosis
from library.data.report.lookalikes import lookalikes
from library.data.report.plan_diagnoses import set_aside
from library.errors import UnreadableError
from library.records import ImageRecord


def duplicate_diagnoses(
    records: Sequence[ImageRecord],
    hashes: Mapping[Path, PictureHash],
    *,
    num_training: int,
    distance: int,
    caption_endings: Iterable[str],
    pinned: Collection[Path] = (),
) -> Iterator[Diagnosis]:
    """Compare all pictures. Copies and links of one name in several subsets are one picture.

    Args:
        records: All pictures, training first.
        hashes: Of those that can be decoded.
        num_training: How many records train.
        distance: How many signs of hashes may differ.
        caption_endings: Endings of caption files.
        pinned: Pictures that stay where they are, as a metadata file names them.

    Raises:
        UnreadableError: A file is gone, or the drive fails.
    """
    owners = _owners(records)
    kept = _real_paths(records[num_training:])
    trained = _real_paths(records[:num_training]) - kept
    equal = list(_equal_files(list(owners)))
    seen = [path for path in owners if path in hashes]
    alike = [[seen[index] for index in group] for group in lookalikes([hashes[path] for path in seen], distance)]
    firsts = {path: group[0] for group in equal for path in group}
    near = [group for group in alike if len({firsts.get(path, path) for path in group}) > 1]
    endings = {ending.lower() for ending in caption_endings}
    exact_cases = tuple(_exact_case(group, owners, endings, pinned) for group in equal)
    yield Diagnosis("warning", "exact-duplicate", "equal files", "Keep one of each, and raise num_repeats", exact_cases)
    leaks = [group for group in _joined(equal, alike) if _has_both(group, trained, kept)]
    leak_cases = tuple(Case(tuple(group), _sides(group, kept)) for group in leaks)
    summary, advice = "pictures both trained and kept for validation", "Move all copies to one side"
    yield Diagnosis("warning", "leak", summary, advice, leak_cases)
    advice = "Look at them side by side, and keep the best one"
    near_cases = tuple(Case(tuple(group)) for group in near)
    yield Diagnosis("warning", "near-duplicate", "pictures that look alike", advice, near_cases)


def _owners(records: Sequence[ImageRecord]) -> dict[Path, ImageRecord]:
    """{path: a record of it}; of several names of one file the first."""
    owners: dict[Path, ImageRecord] = {}
    real: set[str] = set()
    for record in records:
        place = os.path.realpath(record.path)
        if place not in real:
            real.add(place)
            owners[record.path] = record
    return owners


def _real_paths(records: Sequence[ImageRecord]) -> set[str]:
    return {os.path.realpath(record.path) for record in records if not record.is_reg}


def _equal_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Groups of files with the same bytes; only those of one length are read."""
    by_length: defaultdict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_length[_length(path)].append(path)
    for group in by_length.values():
        if len(group) < 2:
            continue
        by_content: defaultdict[bytes, list[Path]] = defaultdict(list)
        for path in group:
            by_content[_digest(path)].append(path)
        yield from (equal for equal in by_content.values() if len(equal) > 1)


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
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


def _exact_case(
    group: Sequence[Path], owners: Mapping[Path, ImageRecord], endings: set[str], pinned: Collection[Path]
) -> Case:
    """All but the first can go, if they are of its subset, say nothing else, and nothing else is bound to them."""
    first, *others = group
    own = owners[first]
    place = (own.dataset, own.subset)
    same = [path for path in others if (owners[path].dataset, owners[path].subset) == place]
    mendable = [path for path in same if owners[path].caption == own.caption]
    bound = {path for path in mendable if path in pinned or owners[path].mask is not None}
    movable = [path for path in mendable if path not in bound]
    remedies: list[Remedy] = [remedy for path in movable for remedy in set_aside(path, endings)]
    reasons = []
    if len(same) < len(others):
        reasons.append("in several subsets")
    if len(mendable) < len(same):
        reasons.append("with different captions")
    if bound:
        reasons.append("named by a metadata file, or with masks")
    return Case(tuple(group), " and ".join(reasons), tuple(remedies))


def _joined(*groupings: Sequence[Sequence[Path]]) -> list[list[Path]]:
    """Groups that have a picture in common as one, in order."""
    joined: list[dict[Path, None]] = []
    for group in (group for groups in groupings for group in groups):
        touching = [other for other in joined if not other.keys().isdisjoint(group)]
        merged = {path: None for other in (*touching, dict.fromkeys(group)) for path in other}
        joined = [other for other in joined if other not in touching] + [merged]
    return [list(group) for group in joined]


def _has_both(group: Sequence[Path], trained: set[str], kept: set[str]) -> bool:
    places = {os.path.realpath(path) for path in group}
    return bool(places & trained) and bool(places & kept)


def _sides(group: Sequence[Path], kept: set[str]) -> str:
    names = [path.name for path in group if os.path.realpath(path) in kept]
    return f"kept for validation: {', '.join(names)}"
