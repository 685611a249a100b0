"""Caption files that belong to no picture, or do so but for how their name is written; and their encodings."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.files.caption_hints import CAPTION_SUFFIXES
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.files.listing import OTHER_PICTURE_SUFFIXES, VIDEO_SUFFIXES, Folder, walk_folders
from library.data.files.text_files import decode_text

_NO_CAPTIONS = re.compile(  # words in the names of texts that lie beside pictures and are about them all
    r"(?<![a-z])(readme|read[ _-]me|licen[cs]es?|copying|copyright|notice|authors?|credits?|sources?|changelog|logs?"
    r"|notes?|todo|prompts?|negatives?|wildcards?|index|lists?|urls?|links?|infos?|about|requirements"
    r"|captions?|tags?|labels?|class(es)?|metadata|dataset|train|val|test|triggers?|characters?|ideas?)(?![a-z])",
    re.IGNORECASE,
)
_SEEN_SUFFIXES = IMAGE_SUFFIXES | OTHER_PICTURE_SUFFIXES | VIDEO_SUFFIXES


@dataclass(frozen=True)
class StrayCaptions:
    """What was found beside pictures.

    Attributes:
        orphans: Captions of no picture: they end as those that are read, and are called like pictures.
        doubtful: Other files that end as captions do, of no picture, which may be anything.
        endings: (file, what it has to be called) of those that only the letter case of their ending keeps from being
            read.
        names: Likewise, where the rest of the name is written otherwise: a.png.txt, or accents as signs of their own.
        encoded: (file, encoding, what the subset declares) of those that are read but are not plain UTF-8.
        linked: Real paths of all files that links in the folders lead to.
    """

    orphans: tuple[Path, ...] = ()
    doubtful: tuple[Path, ...] = ()
    endings: tuple[tuple[Path, Path], ...] = ()
    names: tuple[tuple[Path, Path], ...] = ()
    encoded: tuple[tuple[Path, str, str | None], ...] = ()
    linked: frozenset[str] = frozenset()


def find_stray_captions(specs: Sequence[DatasetSpec], named: Collection[str] = ()) -> StrayCaptions:
    """Look through the folders of all subsets that have captions in files. What cannot be read is the scan's to tell.

    Args:
        specs: The datasets.
        named: Real paths of files that options name, which are no orphans.
    """
    subsets = [subset for spec in specs for subset in spec.subsets if subset.metadata_file is None]
    masks = {subset.conditioning_data_dir for subset in subsets if subset.conditioning_data_dir is not None}
    extensions: dict[str, set[str]] = {}  # of all subsets that read a folder, by where it really is
    folders: dict[str, tuple[Folder, SubsetSpec]] = {}
    for subset in subsets:
        for folder in _folders_of(subset, masks):
            place = os.path.realpath(folder.path)
            extensions.setdefault(place, set()).add(subset.caption_extension)
            folders.setdefault(place, (folder, subset))
    links = (folder.path / name for folder, _ in folders.values() for name in folder.links)
    linked = frozenset(map(os.path.realpath, links))
    kept = linked.union(named)
    orphans: list[Path] = []
    doubtful: list[Path] = []
    endings: list[tuple[Path, Path]] = []
    names: list[tuple[Path, Path]] = []
    encoded: list[tuple[Path, str, str | None]] = []
    for place, (folder, subset) in folders.items():
        own = _OneFolder(folder, extensions[place])
        endings += own.endings_to_mend()
        names += own.names_to_mend()
        for path in own.without_picture():
            is_plain = own.is_like_captions(path.name) and os.path.realpath(path) not in kept
            (orphans if is_plain else doubtful).append(path)
        encoded += _encoded(own.captions(), subset.caption_encoding)
    return StrayCaptions(tuple(orphans), tuple(doubtful), tuple(endings), tuple(names), tuple(encoded), linked)


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
        self.pictures = {name for name in self.names if _suffix(name) in _SEEN_SUFFIXES}
        self.others = {
            _stem(name) for name in self.names if _suffix(name) not in _SEEN_SUFFIXES and not self._stems_of(name)
        }
        self.folded_stems = {_folded(stem) for stem in self.stems}
        self.shapes = {_shape(stem) for stem in self.stems}
        self.by_composed: dict[str, list[str]] = {}
        for stem in self.stems:
            self.by_composed.setdefault(_composed(stem), []).append(stem)
        self._taken = set(self.names)

    def without_picture(self) -> list[Path]:
        """Files that end as captions do, of no picture, however its name is written."""
        return [
            self.path / name
            for name in self.names
            if (stems := self._stems_of(name))
            and not any(_folded(stem) in self.folded_stems or stem in self.pictures for stem in stems)
        ]

    def is_like_captions(self, name: str) -> bool:
        """Whether a file ends as the captions that are read and is called as the pictures are, and not like a text
        about all of them."""
        stems = [name[: -len(extension)] for extension in self.extensions if name.endswith(extension)]
        return any(
            _shape(stem) in self.shapes
            and any(not sign.isalpha() for sign in _composed(stem))  # one word may be anything
            and not _NO_CAPTIONS.search(stem)
            and stem not in self.others
            for stem in stems
        )

    def names_to_mend(self) -> list[tuple[Path, Path]]:
        """Captions whose name has the picture's whole name, or is the same text in other signs, with the right ones."""
        found = []
        for name in self.names:
            for extension in self.extensions:
                stem = name[: -len(extension)]
                if not name.endswith(extension) or stem in self.stems:
                    continue
                alike = [_stem(stem)] if stem in self.pictures else self.by_composed.get(_composed(stem), [])
                right = alike[0] + extension if len(alike) == 1 else name
                if right not in self._taken:
                    self._taken.add(right)
                    found.append((self.path / name, self.path / right))
        return found

    def endings_to_mend(self) -> list[tuple[Path, Path]]:
        """Captions that only the letter case of their ending keeps from being read, with their right names."""
        found = []
        for name in self.names:
            for extension in self.extensions:
                stem = name[: -len(extension)]
                right = stem + extension
                is_near = name != right and name.lower().endswith(extension.lower())
                if is_near and stem in self.stems and right not in self._taken:
                    self._taken.add(right)
                    found.append((self.path / name, self.path / right))
        return found

    def captions(self) -> list[Path]:
        """Captions that are read."""
        wanted = {stem + extension for stem in self.stems for extension in self.extensions}
        return [self.path / name for name in self.names if name in wanted]

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


def _composed(text: str) -> str:
    """The text with letters and their accents as one sign where there is one: two systems write names in two ways."""
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _composed(text).casefold()


def _shape(stem: str) -> tuple[frozenset[str], frozenset[str]]:
    """Of what a name is made: words or words with numbers, and the signs between them."""
    words = re.findall(r"[^\W_]+", _composed(stem))
    kinds = {"number" if any(sign.isdigit() for sign in word) else "word" for word in words}
    return frozenset(kinds), frozenset(re.findall(r"[\W_]", _composed(stem)))


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
