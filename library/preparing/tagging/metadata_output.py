"""All tags in one metadata file, in a form that training reads: names below the folder of the pictures.

{"a/1.png": {"tags": "1girl, hat", "image_size": [640, 480]}, ...}                .json
{"image_path": "a/1.png", "caption": "1girl, hat", "image_size": [640, 480]}      .jsonl, a line for each picture
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.data.files.metadata_json import read_entries
from library.data.problems import dataset_error
from library.errors import DatasetError
from library.preparing.metadata.metadata_files import wrong_numbers
from library.preparing.pictures import Pictures
from library.preparing.tagging.choosing import appended
from library.preparing.tagging.journal import Found
from library.preparing.text_writing import write_text

_LINES = ".jsonl"

Entry = dict[str, Any]


def read_existing(file: Path) -> dict[str, Entry]:
    """The entries of a file that tags will be added to, {name: values}.

    Raises:
        DatasetError: It is damaged, or what tags would be added to is no text of one line.
    """
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
    return {name: dict(values) for name, values in entries}


def merged(
    file: Path, existing: Mapping[str, Entry], pictures: Pictures, found: Mapping[str, Found], separator: str
) -> dict[str, Entry]:
    """The entries of the file to write: those that are there with tags added, then new ones in the order of pictures.

    Args:
        file: Its ending says what entries look like.
        existing: What it holds now, {name: values}; entries of other pictures stay as they are.
        pictures: All of the folder.
        found: What was found, by name of the picture.
        separator: What stands between tags.
    """
    entries = {name: dict(values) for name, values in existing.items()}
    stems = Counter(os.path.splitext(name)[0] for name in pictures.names)
    for name, path in zip(pictures.names, pictures.paths, strict=True):
        if name not in found:
            continue
        stem = os.path.splitext(name)[0]
        spellings = (name, str(path), os.path.abspath(path), *((stem,) if stems[stem] == 1 else ()))
        known = next((spelling for spelling in spellings if spelling in entries), name)
        entry = entries.setdefault(known, {"image_path": name} if _is_lines(file) else {})
        key = _text_key(file, entry)
        entry[key] = appended(entry.get(key) or "", found[name].tags, separator)
        entry["image_size"] = list(found[name].size)
    return entries


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
