"""Metadata files: which pictures a subset has, with captions and tags, as JSON or JSONL.

    {"1.png": {"caption": "a cat", "tags": "cat, grass"}, ...}      .json
    {"image_path": "1.png", "caption": "a cat", ...}                .jsonl, one such line for each picture

Names are relative to image_dir or absolute; one without extension means the one picture of this stem.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from library.data.config.specs import SubsetSpec
from library.data.files.caption_files import caption_for_empty, caption_for_missing, empty_advice, policy_problems
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.files.metadata_json import RawEntry, read_entries
from library.data.files.text_files import is_whole, text_lines
from library.data.findings import Fault, FaultKind, Findings
from library.data.plan.captions import CaptionRules
from library.data.problems import first_names
from library.errors import DatasetError
from library.records import Size

_TEXTS = ("caption", "tags")
_ROOT_ADVICE = "set image_dir (with --in_json: --train_data_dir), where they start"
_KNOWN = frozenset((*_TEXTS, "image_path", "image_size", "train_resolution"))


class MetadataEntry(NamedTuple):
    """One picture of a metadata file.

    Attributes:
        path: The picture; it exists.
        caption: Caption and tags; with wildcards it may have several lines.
        size: As the file states it, in pixels.
        name: As the file calls the picture.
        bucket: The size that it was prepared for, if the file states one, in pixels.
    """

    path: Path
    caption: str
    size: Size | None
    name: str
    bucket: Size | None


@dataclass(frozen=True)
class MetadataReading:
    """What a metadata file says: its usable pictures in the file's order, and everything that is wrong with it."""

    entries: tuple[MetadataEntry, ...]
    findings: Findings


def read_metadata(subset: SubsetSpec) -> MetadataReading:
    """Read the metadata file of a subset and find its pictures.

    Args:
        subset: With a `metadata_file`.
    """
    file = subset.metadata_file
    assert file is not None
    try:
        raw, problems = read_entries(file)
    except DatasetError as error:
        return MetadataReading((), Findings(problems=(*policy_problems(subset), str(error))))
    reader = _Reader(subset, file)
    entries = [entry for name, value in raw if (entry := reader.read(name, value)) is not None]
    if not raw and not problems:
        problems = (f"{file} names no pictures",)
    found = Findings(problems=(*policy_problems(subset), *problems)) + reader.findings()
    return MetadataReading(tuple(entries), found)


def join_caption_and_tags(caption: str, tags: str, rules: CaptionRules) -> str:
    """One caption of both: caption, separator, tags; with wildcards the tags follow every line of the caption.

    Line breaks in `tags` count as separators. Without wildcards only the caption's first line is used.
    """
    separator = rules.caption_separator
    joined_tags = separator.join(text_lines(tags))
    lines = text_lines(caption)
    if not rules.enable_wildcard:
        lines = lines[:1]
    if not joined_tags:
        return "\n".join(lines)
    return "\n".join(f"{line}{separator}{joined_tags}" for line in lines) or joined_tags


class _Reader:
    """Goes through the entries of a file; keeps what is wrong with them."""

    def __init__(self, subset: SubsetSpec, file: Path) -> None:
        self.subset = subset
        self.file = file
        self.folders = NamedPictures()
        self.names: dict[str, str] = {}  # of pictures: by path
        self.problems: list[str] = []
        self.faults: list[Fault] = []
        self.without_root: list[str] = []
        self.without_caption: list[str] = []
        self.without_text: list[str] = []
        self.with_more_lines: list[str] = []
        self.unused_keys: Counter[str] = Counter()

    def read(self, name: str, value: RawEntry) -> MetadataEntry | None:
        """The entry of one picture; None where it cannot be used."""
        path = self._picture(name)
        if path is None:
            return None
        self.unused_keys.update(key for key in value if key not in _KNOWN)
        problem = wrong_types(value)
        if problem is not None:
            self._add_fault(name, path, problem, "unusable")
            return None
        caption = self._caption(name, path, value)
        if caption is None:
            return None
        size, bucket = (_size(value.get(key)) for key in ("image_size", "train_resolution"))
        return MetadataEntry(path, caption, size, name, bucket)

    def findings(self) -> Findings:
        """What was noticed in all entries."""
        problems = list(self.problems)
        if self.without_root:
            listed = f"{len(self.without_root)} ({first_names(self.without_root)})"
            problems.insert(0, f"{self.file} has relative names: {listed}; {_ROOT_ADVICE}")
        counted = (
            ("entries without caption, tags and class_tokens, trained with an empty caption", self.without_caption),
            ("entries without text, trained with class_tokens or an empty caption", self.without_text),
            (
                "captions with several lines, of which only the first is used (enable_wildcard uses all)",
                self.with_more_lines,
            ),
        )
        notes = [f"{self.file}: {what}: {len(names)} ({first_names(names)})" for what, names in counted if names]
        unused = [f"{key} ({count})" for key, count in self.unused_keys.items()]
        remarks = (f"{self.file}: keys that are not used: {first_names(unused)}",) if unused else ()
        return Findings(tuple(problems), tuple(self.faults), notes=tuple(notes), remarks=remarks)

    def _picture(self, name: str) -> Path | None:
        """The picture that is meant, if there is exactly one and no other name means it too."""
        root = self.subset.image_dir
        if root is None and not os.path.isabs(name):
            self.without_root.append(name)
            return None
        wanted = os.path.join(root or "", name)
        found = self.folders.find(wanted)
        if len(found) != 1:
            self.faults.append(Fault(Path(wanted), f"{_why_not_one(name, wanted, found)} (named by {self.file})"))
            return None
        key = os.path.normcase(os.path.abspath(found[0]))
        if key in self.names:
            self.problems.append(f'{self.file} has {key} twice, as "{self.names[key]}" and as "{name}"; remove one')
            return None
        self.names[key] = name
        return Path(found[0])

    def _caption(self, name: str, path: Path, value: RawEntry) -> str | None:
        subset = self.subset
        caption, tags = (value.get(key) or "" for key in _TEXTS)
        text = join_caption_and_tags(caption, tags, subset.captions)
        if text:
            if len(text_lines(caption)) > 1 and not subset.captions.enable_wildcard:
                self.with_more_lines.append(name)
            return text
        if any(value.get(key) is not None for key in _TEXTS):
            self.without_text.append(name)
            instead, problem = caption_for_empty(subset), f"has no text; {empty_advice(subset)}"
            kind: FaultKind = "empty-caption"
        else:
            if subset.class_tokens is None:
                self.without_caption.append(name)
            instead = caption_for_missing(subset)
            problem = 'has no caption and no tags; write them, or set class_tokens or missing_caption = "allow"'
            kind = "missing-caption"
        if instead is None:
            self._add_fault(name, path, problem, kind)
        return instead

    def _add_fault(self, name: str, path: Path, problem: str, kind: FaultKind) -> None:
        self.faults.append(Fault(self.file, f'entry "{name}": {problem}', path, kind))


class NamedPictures:
    """Finds the pictures that names mean. Each folder is read once."""

    def __init__(self) -> None:
        self.files: dict[str, frozenset[str]] = {}
        self.stems: dict[str, dict[str, list[str]]] = {}

    def find(self, wanted: str) -> list[str]:
        """The picture of this name; else all pictures of which it is the stem."""
        folder, name = os.path.split(wanted)
        if folder not in self.files:
            self._read(folder)
        is_listed = name in self.files[folder]
        if is_listed and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            return [wanted]
        pictures = [os.path.join(folder, found) for found in self.stems[folder].get(name, ())]
        if not pictures and (is_listed or os.path.isfile(wanted)):
            return [wanted]
        return pictures

    def _read(self, folder: str) -> None:
        try:
            with os.scandir(folder or ".") as entries:
                names = frozenset(entry.name for entry in entries if entry.is_file())
        except (OSError, ValueError):
            names = frozenset()  # then its pictures are missing, and named as such
        self.files[folder] = names
        self.stems[folder] = {}
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                self.stems[folder].setdefault(stem, []).append(name)


def _why_not_one(name: str, wanted: str, found: list[str]) -> str:
    if found:
        names = ", ".join(map(os.path.basename, found))
        return f"may be one of several pictures: {names}; write the whole name"
    if os.path.isdir(wanted):
        return "is a folder; name each of its pictures, or make the folder a subset without metadata_file"
    slashes = "; write / instead of \\ in names" if "\\" in name and os.sep != "\\" else ""
    return f"does not exist{slashes or '; correct the name, or remove the entry'}"


def wrong_types(value: Mapping[str, Any]) -> str | None:
    """What is wrong with the values of an entry, to follow its name; None where nothing is."""
    for key in _TEXTS:
        text = value.get(key)
        if text is not None and not isinstance(text, str):
            return f"{key} must be a text, got {text!r:.60}"
        if text is not None and not is_whole(text):
            return f"{key} holds half a character ({text!a:.60}); write the whole one"
    size = value.get("image_size")
    if size is not None and not _is_size(size):
        return f"image_size must be [width, height] in pixels, got {size!r:.60}"
    return None


def _size(value: Any) -> Size | None:
    """A size that is stated; what a file of another program has there instead is none."""
    return Size(*value) if _is_size(value) else None


def _is_size(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
