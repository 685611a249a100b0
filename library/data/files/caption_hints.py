"""Files that look like captions but are not read: of another ending than was asked for, or of another letter case."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from library.data.config.specs import SubsetSpec

CAPTION_SUFFIXES = (".txt", ".caption", ".cap", ".captions", ".tags", ".tag", ".text", ".prompt")


class NearFiles:
    """Finds files that may be the captions of single pictures without one.

    Args:
        extension: The ending that captions shall have.
        taken: Paths of the captions that other pictures have.
        other_files: Names of the other files of every folder that a picture is in.
    """

    def __init__(self, extension: str, taken: Collection[str], other_files: Mapping[Path, frozenset[str]]) -> None:
        self.suffixes = {*CAPTION_SUFFIXES, extension.lower()}
        self.taken = taken
        self.other_files = other_files
        self.by_stem: dict[Path, dict[str, list[str]]] = {}

    def of(self, image: Path) -> list[str]:
        """Names of the files beside a picture that may be its caption, and are no other picture's."""
        folder = image.parent
        if folder not in self.by_stem:
            self.by_stem[folder] = self._stems_in(folder)
        return self.by_stem[folder].get(image.stem.casefold(), [])

    def _stems_in(self, folder: Path) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self.other_files.get(folder, ())):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in self.suffixes and os.fspath(folder / name) not in self.taken:
                found.setdefault(stem.casefold(), []).append(name)
        return found


def captions_elsewhere(
    subset: SubsetSpec, images: Sequence[Path], other_files: Mapping[Path, frozenset[str]]
) -> tuple[str, str] | None:
    """Files of another extension beside pictures none of which has a caption: a sentence, and the extension."""
    stems = {os.path.splitext(image)[0] for image in images}
    suffixes = Counter(
        suffix
        for folder, names in other_files.items()
        for stem, suffix in map(os.path.splitext, names)
        if suffix.lower() in CAPTION_SUFFIXES and os.fspath(folder / stem) in stems
    )
    if not suffixes:
        return None
    suffix, count = suffixes.most_common(1)[0]
    wanted = subset.caption_extension
    return f"{subset.image_dir} has no {wanted} files but {suffix} files beside its pictures ({count})", suffix
