"""What lies in the cache folders: valid, stale, missing and left-over files, with counts and bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.data.cache import TensorCache, orphans
from library.data.cache.places import TEXT_FOLDER
from library.data.problems import first_names
from library.data.report.report_text import bytes_in_words
from library.errors import CheckpointError, OutputError
from library.tensorfile import abandoned_files, read_header

NEW = "new"  # why an entry has to be made that has no file


@dataclass(frozen=True)
class FileGroup:
    """Files that are alike in something.

    Attributes:
        names: Of the files, or of what they would be made from where there are none.
        num_bytes: Size of all together.
    """

    names: tuple[str, ...]
    num_bytes: int = 0

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class CacheStatus:
    """The state of one cache on disk.

    Attributes:
        valid: Files that are used as they are.
        foreign: Files of another program that are used as they are.
        stale: {why they have to be made again: files}.
        missing: What has no file, by the picture or caption.
        left_over: Our files that belong to none of the pictures and captions, or that were never completed.
    """

    valid: FileGroup
    foreign: FileGroup
    stale: Mapping[str, FileGroup]
    missing: FileGroup
    left_over: FileGroup

    def lines(self, what: str) -> Iterator[str]:
        """The status in words: a line that counts, then a line for everything that is not as it should be."""
        num_stale = sum(len(group) for group in self.stale.values())
        counts = [f"{len(self.valid)} valid ({bytes_in_words(self.valid.num_bytes)})"]
        if self.foreign:
            counts.append(f"{len(self.foreign)} from sd-scripts ({bytes_in_words(self.foreign.num_bytes)})")
        counts += [f"{num_stale} stale", f"{len(self.missing)} missing"]
        counts.append(f"{len(self.left_over)} left over ({bytes_in_words(self.left_over.num_bytes)})")
        yield f"{what}: {', '.join(counts)}"
        for reason, group in sorted(self.stale.items(), key=lambda item: (-len(item[1]), item[0])):
            yield f"{what}: stale: {len(group)} {reason}: {first_names(group.names)}"
        if self.missing:
            yield f"{what}: missing: {len(self.missing)}: {first_names(self.missing.names)}"
        if self.left_over:
            yield f"{what}: left over: {len(self.left_over)}: {first_names(self.left_over.names)}"


def cache_status(cache: TensorCache, reasons: Mapping[str, str], left_over: Sequence[Path]) -> CacheStatus:
    """Sort the files of a cache.

    Args:
        cache: Its entries have files.
        reasons: {entry id: why it has to be made}, as `cache.check()` says.
        left_over: From `leftovers`.
    """
    valid: list[Path] = []
    foreign: dict[Path, None] = {}  # in order; one may stand for several entries
    missing: list[str] = []
    stale: defaultdict[str, list[Path]] = defaultdict(list)
    for entry_id in cache.ids:
        path = cache[entry_id].path
        assert path is not None
        if (other := cache.foreign_path(entry_id)) is not None:
            foreign[other] = None
        elif entry_id not in reasons:
            valid.append(path)
        elif path.exists():
            stale[reasons[entry_id]].append(path)
        else:
            missing.append(cache[entry_id].about)
    return CacheStatus(
        valid=_group(valid),
        foreign=_group(list(foreign)),
        stale={reason: _group(paths) for reason, paths in stale.items()},
        missing=FileGroup(tuple(missing)),
        left_over=_group(left_over),
    )


def leftovers(cache: TensorCache, folders: Sequence[Path], *, kind: str, family: str) -> list[Path]:
    """Files of this kind of cache and of this model family that belong to none of the entries, and what runs that were
    killed have left of files that they wrote.

    Args:
        cache: What is wanted.
        folders: Where to look.
        kind: "latents" or "text".
        family: Name of the model family.
    """
    complete = [path for path in orphans(cache.entries, folders) if _origin(path) == (kind, family)]
    own = [folder for folder in folders if (folder.name == TEXT_FOLDER) == (kind == "text")]
    return complete + [path for folder in own for path in abandoned_files(folder)]


def remove_files(paths: Sequence[Path]) -> int:
    """Remove files, and return how many bytes they had. What is gone already is no error.

    Raises:
        OutputError: Files cannot be removed; the first is named.
    """
    num_bytes = 0
    for path in paths:
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise OutputError(
                f"{path} cannot be removed ({error.strerror or error}). Make its folder writable."
            ) from None
        num_bytes += size
    return num_bytes


def _group(paths: Sequence[Path]) -> FileGroup:
    return FileGroup(tuple(path.name for path in paths), sum(_size(path) for path in paths))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone since it was listed
        return 0


def _origin(path: Path) -> tuple[str | None, str | None]:
    try:
        metadata = read_header(path).metadata
    except CheckpointError:
        return None, None
    return metadata.get("kind"), metadata.get("family")
