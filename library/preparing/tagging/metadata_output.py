"""All tags in one metadata file, in a form that training reads: names below the folder of the pictures.

{"a/1.png": {"tags": "1girl, hat", "image_size": [640, 480]}, ...}                .json
{"image_path": "a/1.png", "caption": "1girl, hat", "image_size": [640, 480]}      .jsonl, a line for each picture
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from library.data.files.metadata_file import NamedPictures
from library.data.files.metadata_json import read_entries
from library.data.problems import dataset_error
from library.errors import DatasetError
from library.preparing.metadata.metadata_files import wrong_numbers
from library.preparing.metadata.picture_names import match_names, picture_names
from library.preparing.pictures import Pictures
from library.preparing.tagging.choosing import appended
from library.preparing.tagging.journal import Found
from library.preparing.text_writing import write_text

_LINES = ".jsonl"

Entry = dict[str, Any]


@dataclass(frozen=True)
class Existing:
    """What a metadata file holds.

    Attributes:
        file: Its ending says what entries look like.
        entries: {name: values}.
        spelled: {name of a picture of the folder: name of its entry}, where the two are not the same.
    """

    file: Path
    entries: Mapping[str, Entry] = field(default_factory=dict)
    spelled: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """The tags of a picture; None where it has none. An empty text is one too."""
        entry = self.entries.get(self.spelled.get(name, name), {})
        text: str | None = entry.get(_text_key(self.file, entry))
        return text


def read_existing(file: Path, pictures: Pictures) -> Existing:
    """The entries of a file that tags will be added to; none where there is no file.

    Args:
        file: The metadata file.
        pictures: All of the folder.

    Raises:
        DatasetError: It is damaged, what tags would be added to is no text of one line, or two entries are of one
            picture.
    """
    if not file.exists():
        return Existing(file)
    try:
        entries, problems = read_entries(file)
    except DatasetError as error:
        raise DatasetError(f"--output_path: {error}.") from None
    names = Counter(name for name, _ in entries)
    problems += tuple(
        f'{file} has "{name}" {count} times; remove all but one' for name, count in names.items() if count > 1
    )
    for name, values in entries:
        key = _text_key(file, values)
        text = values.get(key)
        if (wrong := wrong_numbers(values)) is not None:
            problems += (f'{file}: entry "{name}": {wrong}',)
        if text is not None and (not isinstance(text, str) or "\n" in text.strip()):
            problems += (f'{file}: entry "{name}": {key} must be a text of one line, got {text!r:.60}',)
    if problems:
        raise dataset_error("--output_path", list(dict.fromkeys(problems)))
    matched = match_names(file, names, picture_names(pictures, is_full_path=False), pictures.root)
    spelled = {name: entry for entry, name in matched.renamed.items()}
    return Existing(file, {name: dict(values) for name, values in entries}, spelled)


def merged(
    existing: Existing, pictures: Pictures, found: Mapping[str, Found], separator: str, *, is_appended: bool
) -> dict[str, Entry]:
    """The entries of the file to write: those that are there, then new ones in the order of pictures.

    Entries of other pictures stay as they are. One by whose name a training would not find its picture gets another.

    Args:
        existing: What the file holds now.
        pictures: All of the folder.
        found: What was found, by name of the picture.
        separator: What stands between tags.
        is_appended: Tags are added to entries that have some; else these stay as they are.
    """
    names = renamed_entries(existing, pictures)
    entries = {names.get(entry, entry): dict(values) for entry, values in existing.entries.items()}
    is_lines = _is_lines(existing.file)
    if is_lines:
        entries = {name: {**values, "image_path": name} for name, values in entries.items()}
    for name in (name for name in pictures.names if name in found):
        text = existing.text(name)
        if text is not None and not is_appended:
            continue
        spelled = existing.spelled.get(name, name)
        entry = entries.setdefault(names.get(spelled, spelled), {"image_path": name} if is_lines else {})
        entry[_text_key(existing.file, entry)] = appended(text or "", found[name].tags, separator)
        entry["image_size"] = list(found[name].size)
    return entries


def renamed_entries(existing: Existing, pictures: Pictures) -> dict[str, str]:
    """{entry: its new name} of those that a training, which begins at the folder, would not find."""
    finder = NamedPictures()
    return {
        entry: name for name, entry in existing.spelled.items() if not finder.find(os.path.join(pictures.root, entry))
    }


def write_entries(file: Path, entries: Mapping[str, Entry]) -> None:
    """Write a metadata file, whole or not at all.

    Raises:
        OutputError: It cannot be written; what was there is as it was.
    """
    if _is_lines(file):
        text = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries.values())
    else:
        text = json.dumps(entries, ensure_ascii=False, indent=2)
    write_text(file, text)


def _is_lines(file: Path) -> bool:
    return file.suffix.lower() == _LINES


def _text_key(file: Path, entry: Mapping[str, Any]) -> str:
    """Where the tags of an entry are."""
    return "tags" if not _is_lines(file) or "tags" in entry else "caption"
