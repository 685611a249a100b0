"""The entries of a metadata file, JSON or JSONL, with the line of what cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from library.data.files.json_faults import describe_fault
from library.data.files.strict_json import parse_json
from library.data.files.text_files import decode_text
from library.errors import DatasetError

RawEntry = Mapping[str, Any]

_LINES = ".jsonl"
_EXAMPLE = '{"caption": "a cat"}'


def read_entries(file: Path) -> tuple[list[tuple[str, RawEntry]], tuple[str, ...]]:
    """Read a metadata file.

    Returns:
        (name of the picture, its values) in the order of the file, and what is wrong with single entries.

    Raises:
        DatasetError: Nothing can be made of the file. The message starts with its name and has no full stop.
    """
    text = _read_text(file)
    repeated: list[str] = []
    if file.suffix.lower() == _LINES:
        entries, problems = _read_lines(file, text, repeated)
    else:
        entries, problems = _read_object(file, text, repeated)
    problems += [f'{file} has "{name}" twice; remove one' for name in dict.fromkeys(repeated)]
    return entries, tuple(problems)


def _read_text(file: Path) -> str:
    try:
        return decode_text(file.read_bytes())[0]
    except FileNotFoundError:
        raise DatasetError(f"metadata_file {file} does not exist{_near(file)}") from None
    except IsADirectoryError:
        raise DatasetError(f"metadata_file {file} is a folder; name the file in it") from None
    except OSError as error:
        raise DatasetError(f"metadata_file {file} cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise DatasetError(f"metadata_file {file} {error}; save it again as UTF-8") from None


def _near(file: Path) -> str:
    """A file that may be meant instead."""
    try:
        names = os.listdir(file.parent)
    except OSError:
        return f", and neither does its folder {file.parent}"
    near = get_close_matches(file.name, names, n=1)
    return f"; the nearest name in its folder is {near[0]}" if near else f"; its folder {file.parent} does"


def _read_object(file: Path, text: str, repeated: list[str]) -> tuple[list[tuple[str, RawEntry]], list[str]]:
    """{name: values, ...}"""
    try:
        content = parse_json(text, repeated)
    except json.JSONDecodeError as error:
        place = ": ".join(describe_fault(error))
        raise DatasetError(f"{file} is not JSON ({place}){_advice(error, text)}") from None
    if not isinstance(content, dict):
        raise DatasetError(
            f'{file} must hold an object of names, like {{"1.png": {_EXAMPLE}}}; one object in each line needs the '
            f"extension {_LINES}"
        )
    entries: list[tuple[str, RawEntry]] = []
    problems = []
    for name, values in content.items():
        if not name:
            problems.append(f"{file} has an entry without name; name its picture")
        elif isinstance(values, dict):
            entries.append((name, values))
        else:
            problems.append(f'{file}: entry "{name}" must be an object like {_EXAMPLE}, got {values!r:.60}')
    return entries, problems


def _read_lines(file: Path, text: str, repeated: list[str]) -> tuple[list[tuple[str, RawEntry]], list[str]]:
    """{"image_path": name, ...} in every line that is not blank."""
    entries: list[tuple[str, RawEntry]] = []
    problems = []
    for number, values in _parsed_lines(text, repeated):
        place = f"{file}, line {number}"
        if isinstance(values, json.JSONDecodeError):
            where, reason = describe_fault(values)
            column = where.partition(", ")[2]
            problems.append(f"{place}, {column} is not JSON ({reason}); mend or remove the line")
        elif not isinstance(values, dict):
            problems.append(f"{place} must be an object with image_path, got {values!r:.60}")
        elif not isinstance(values.get("image_path"), str) or not values["image_path"]:
            problems.append(f"{place} has no image_path, which names the picture{_other_keys(values)}")
        else:
            entries.append((values["image_path"], values))
    return entries, problems


def _other_keys(values: RawEntry) -> str:
    """The keys of a line as other programs write it, {"file_name": ..., "text": ...}, and those that are meant."""
    foreign = [key for key in values if key not in ("image_path", "caption", "tags")]
    if "image_path" in values or not foreign:
        return ""
    wanted = "image_path is" if "caption" in values or "tags" in values else "image_path and caption are"
    return f"; it has {', '.join(foreign)}: {wanted} meant"


def _parsed_lines(text: str, repeated: list[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line, repeated)
        except json.JSONDecodeError as error:
            yield number, error


def _advice(error: json.JSONDecodeError, text: str) -> str:
    is_lines = error.msg == "Extra data" and text.lstrip().startswith("{")
    return (
        f"; with one object in each line its extension must be {_LINES}" if is_lines else "; mend it or make it again"
    )
