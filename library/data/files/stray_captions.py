"""Caption files that belong to no picture, or do so but for the letter case of their ending; and their encodings."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.files.caption_hints import CAPTION_SUFFIXES
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.files.listing import OTHER_PICTURE_SUFFIXES, VIDEO_SUFFIXES, Folder, walk_folders
from library.data.files.text_files import decode_text

_SEEN_SUFFIXES = IMAGE_SUFFIXES | OTHER_PICTURE_SUFFIXES | VIDEO_SUFFIXES


@dataclass(frozen=True)
class StrayCaptions:
    """What was found beside pictures.

    Attributes:
        orphans: Files that end as captions do, of no picture.
        renamings: (file, what it has to be called) of those that are not read for their letter case only.
        encoded: (file, encoding, what the subset declares) of those that are read but are not plain UTF-8.
    """

    orphans: tuple[Path, ...] = ()
    renamings: tuple[tuple[Path, Path], ...] = ()
    encoded: tuple[tuple[Path, str, str | None], ...] = ()


def find_stray_captions(specs: Sequence[DatasetSpec]) -> StrayCaptions:
    """Look through the folders of all subsets that have captions in files. What cannot be read is the scan's to tell.

    Args:
        specs: The datasets.
    """
    subsets = [subset for spec in specs for subset in spec.subsets if subset.metadata_file is None]
    masks = {subset.conditioning_data_dir for subset in subsets if subset.conditioning_data_dir is not None}
    extensions: dict[Path, set[str]] = {}  # of all subsets that read a folder
    folders: dict[Path, tuple[Folder, SubsetSpec]] = {}
    for subset in subsets:
        for folder in _folders_of(subset, masks):
            extensions.setdefault(folder.path, set()).add(subset.caption_extension)
            folders.setdefault(folder.path, (folder, subset))
    orphans: list[Path] = []
    renamings: list[tuple[Path, Path]] = []
    encoded: list[tuple[Path, str, str | None]] = []
    for path, (folder, subset) in folders.items():
        own = _OneFolder(folder, extensions[path])
        orphans += own.orphans()
        renamings += own.renamings()
        encoded += _encoded(own.captions(), subset.caption_encoding)
    return StrayCaptions(tuple(orphans), tuple(renamings), tuple(encoded))


class _OneFolder:
    """The files of one folder.

    Args:
        folder: It.
        extensions: Of captions, as all subsets that read it say.
    """

    def __init__(self, folder: Folder, extensions: Collection[str]) -> None:
        self.path = folder.path
        self.names = sorted(folder.files)
        self.extensions = extensions
        self.endings = {*CAPTION_SUFFIXES, *(extension.lower() for extension in extensions)}
        self.stems = {_stem(name) for name in self.names if _suffix(name) in _SEEN_SUFFIXES}
        self.folded_stems = {stem.casefold() for stem in self.stems}

    def orphans(self) -> list[Path]:
        """Captions of no picture, whatever its letter case."""
        return [
            self.path / name
            for name in self.names
            if self._ending(name) and not any(stem.casefold() in self.folded_stems for stem in self._stems_of(name))
        ]

    def renamings(self) -> list[tuple[Path, Path]]:
        """Captions that only the letter case of their ending keeps from being read, with their right names."""
        taken = set(self.names)
        found = []
        for name in self.names:
            for extension in self.extensions:
                stem = name[: -len(extension)]
                right = stem + extension
                is_near = name != right and name.lower().endswith(extension.lower())
                if is_near and stem in self.stems and right not in taken:
                    taken.add(right)
                    found.append((self.path / name, self.path / right))
        return found

    def captions(self) -> list[Path]:
        """Captions that are read."""
        wanted = {stem + extension for stem in self.stems for extension in self.extensions}
        return [self.path / name for name in self.names if name in wanted]

    def _ending(self, name: str) -> str:
        return next((ending for ending in self.endings if name.lower().endswith(ending)), "")

    def _stems_of(self, name: str) -> list[str]:
        """What the picture may be called: endings such as ".tags.txt" have several parts."""
        return [name[: -len(ending)] for ending in self.endings if name.lower().endswith(ending)]


def _folders_of(subset: SubsetSpec, masks: Collection[Path]) -> Iterable[Folder]:
    assert subset.image_dir is not None
    found = walk_folders(subset.image_dir, is_recursive=subset.recursive, passed=masks)
    return [folder for folder in found if isinstance(folder, Folder)]


def _encoded(captions: Sequence[Path], encoding: str | None) -> list[tuple[Path, str, str | None]]:
    found = []
    for path in captions:
        try:
            _, codec = decode_text(path.read_bytes(), encoding)
        except (OSError, ValueError, LookupError):
            continue  # the scan has told it
        if codec != "utf-8":
            found.append((path, codec, encoding))
    return found


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
