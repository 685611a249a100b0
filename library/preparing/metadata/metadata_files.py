"""Metadata files that tools read and write: JSON or JSONL by their ending, as a training reads them.

Entries are {name of the picture: its values}. Whatever keys an entry has are kept. How the two kinds of files look is
told in library/data/files/metadata_file.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.data.files.listing import natural_order
from library.data.files.metadata_file import wrong_types
from library.data.files.metadata_json import read_entries
from library.data.files.missing import place_hint
from library.data.problems import dataset_error
from library.errors import DatasetError, OptionError
from library.preparing.text_writing import write_text

Entry = dict[str, Any]
Entries = dict[str, Entry]

ENDINGS = (".json", ".jsonl")
_NAME = "image_path"  # key of the name in a JSONL file
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")


def read_metadata_file(file: Path, name: str) -> Entries:
    """All entries of a file, in its order. Nothing is passed over.

    Args:
        file: JSON or JSONL.
        name: How the user gave it, for messages, for instance "IN_JSON".

    Raises:
        DatasetError: The file cannot be read, or something in it is wrong; all of that is in the message.
    """
    try:
        read, problems = read_entries(file)
    except DatasetError as error:
        raise DatasetError(f"{name}: {str(error).removeprefix('metadata_file ')}.") from None
    found = list(problems)
    entries: Entries = {}
    for picture, values in read:
        problem = wrong_types(values) or wrong_numbers(values)
        if problem is not None:
            found.append(f'{file}: entry "{picture}": {problem}')
        if picture in entries:
            found.append(f'{file} has "{picture}" twice; remove one')
        entries[picture] = {key: value for key, value in values.items() if (key, value) != (_NAME, picture)}
    if found:
        raise dataset_error(name, found, "problems")
    return entries


def write_metadata_file(file: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write all entries in natural order of their names, whole or not at all.

    Args:
        file: Its ending says which kind it is, see `check_output`.
        entries: As from `read_metadata_file`.

    Raises:
        DatasetError: An entry is none that a training reads.
        OutputError: The file cannot be written; what was there is as it was.
    """
    names = sorted(entries, key=natural_order)
    is_lines = file.suffix.lower() == ENDINGS[1]
    for name in names:
        problem = wrong_types(entries[name]) or wrong_numbers(entries[name])
        if is_lines and _NAME in entries[name]:
            problem = f"has a key {_NAME} of its own ({entries[name][_NAME]!r:.60}); remove it, or write a .json file"
        if problem is not None:
            raise DatasetError(f'{file}: entry "{name}": {problem}.')
    if is_lines:
        text = "\n".join(json.dumps({_NAME: name, **entries[name]}, ensure_ascii=False) for name in names)
    else:
        text = json.dumps({name: entries[name] for name in names}, ensure_ascii=False, indent=2)
    write_text(file, _HALF_CHARACTERS.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text))


def check_output(file: Path, name: str = "OUT_JSON") -> None:
    """See that a metadata file can be written there.

    Args:
        file: Where it shall be.
        name: How the user gave it, for messages.

    Raises:
        OptionError: It has another ending, its folder is missing, or it is a folder.
    """
    if file.suffix.lower() not in ENDINGS:
        raise OptionError(f"{name} must end in .json or .jsonl, got {file}.")
    if file.is_dir():
        raise OptionError(f"{name} {file} is a folder. Name a file.")
    if not file.parent.is_dir():
        hint = place_hint(file.parent, "")
        raise OptionError(
            f"{name} {file}: the folder {file.parent} does not exist{hint}. Make it, or correct the path."
        )


def wrong_numbers(values: Mapping[str, Any]) -> str | None:
    """What is wrong with numbers of an entry, to follow its name; None where nothing is.

    Python reads NaN, Infinity and 1e400, and would write what other programs cannot read.
    """
    for key, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            return f"{key} holds a number that JSON cannot hold ({value!r:.60}); correct or remove it"
    return None
