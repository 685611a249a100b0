"""Reading a dataset file, TOML or JSON, with errors that name file and line."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from library.errors import DatasetError

BACKSLASH_ADVICE = "write Windows paths in single quotes ('C:\\data') or with / (\"C:/data\")"


def read_dataset_file(path: Path) -> tuple[dict[str, Any], str]:
    """Parse a `.toml` or `.json` file.

    Returns:
        The top-level table, and the text it came from (for `find_line`).

    Raises:
        DatasetError: The file is missing, unreadable, of another type, not UTF-8, or malformed.
    """
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        raise DatasetError(f"{path}: a dataset file ends in .toml or .json, this one in {suffix or 'nothing'!r}.")
    text = _read_text(path)
    table = _parse_toml(path, text) if suffix == ".toml" else _parse_json(path, text)
    if not isinstance(table, dict):
        raise DatasetError(f"{path}: the top level must be an object with 'datasets', got {type(table).__name__}.")
    return table, text


def find_line(text: str, key: str) -> int | None:
    """Line (from 1) where `key` is given a value; None where it occurs several times, or not in the usual form."""
    name = re.escape(key)
    pattern = re.compile(rf"""^[\s{{,]*(?:["']{name}["']\s*[=:]|{name}\s*=)|^\s*\[+\s*(?:\w+\s*\.\s*)*{name}\s*\]+""")
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if pattern.match(line)]
    return lines[0] if len(lines) == 1 else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(f"{path}: this dataset file does not exist. Check --dataset_config.") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not a UTF-8 file (byte {error.start}). Save it again as UTF-8.") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    parser = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "toml")
    try:
        table: dict[str, Any] = parser.loads(text)
    except (ValueError, IndexError) as error:  # the toml package lets IndexError out for some bad strings
        raise _malformed(path, text, str(error)) from None
    return table


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _malformed(path, text, f"{error.msg} (at line {error.lineno}, column {error.colno})") from None


def _malformed(path: Path, text: str, message: str) -> DatasetError:
    """The parser's message with file, line and, where a backslash is to blame, the way to write paths."""
    found = re.search(r"line (\d+)", message)
    place, advice = "", ""
    if found:
        place = f":{found.group(1)}"
        lines = text.splitlines()
        line = lines[int(found.group(1)) - 1] if int(found.group(1)) <= len(lines) else ""
        advice = f" In double quotes a backslash starts an escape: {BACKSLASH_ADVICE}." if "\\" in line else ""
    if path.suffix.lower() == ".json" and advice:
        advice = " In JSON a backslash is written twice: use / in paths."
    message = re.sub(r"\s*\((?:at )?line \d+[^)]*\)", "", message).strip()
    return DatasetError(f"{path}{place}: not valid {path.suffix[1:].upper()}: {message}.{advice}")
