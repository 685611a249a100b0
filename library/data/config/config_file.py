"""Reading a dataset file, TOML or JSON, with errors that name file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from library.data.files.json_faults import describe_fault
from library.data.files.strict_json import parse_json
from library.data.problems import dataset_error
from library.errors import DatasetError
from library.options.toml_file import parse_toml

BACKSLASH_ADVICE = "write Windows paths in single quotes ('C:\\data') or with / (\"C:/data\")"


def read_dataset_file(path: Path) -> tuple[dict[str, Any], str]:
    """Parse a `.toml` or `.json` file.

    Returns:
        The top-level table, and the text it came from (for `find_line`).

    Raises:
        DatasetError: The file is missing, unreadable, of another type, not UTF-8, or malformed.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DatasetError(f"{path}: this is a folder. Write a dataset file that names it as image_dir.")
    if suffix not in (".toml", ".json"):
        raise DatasetError(f"{path}: a dataset file ends in .toml or .json, this one in {suffix or 'nothing'!r}.")
    text = _read_text(path)
    table = parse_toml(text, str(path), DatasetError) if suffix == ".toml" else _parse_json(path, text)
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


def _parse_json(path: Path, text: str) -> Any:
    repeated: list[str] = []
    try:
        table = parse_json(text, repeated)
    except json.JSONDecodeError as error:
        has_backslash = "\\" in error.doc.split("\n")[error.lineno - 1]
        advice = " In JSON a backslash begins an escape: use / in paths." if has_backslash else ""
        place, reason = describe_fault(error)
        raise DatasetError(f"{path}: {place}: not valid JSON ({reason}).{advice}") from None
    if repeated:
        problems = [f'"{name}" stands in one object twice; remove one' for name in dict.fromkeys(repeated)]
        raise dataset_error(str(path), problems, "faults in the dataset file")
    return table
