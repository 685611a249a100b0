"""Read a TOML file; errors name file and line, and say how to write Windows paths."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from library.errors import UserError


def read_toml(path: Path, what: str, error: type[UserError]) -> tuple[dict[str, Any], str]:
    """Read and parse a TOML file.

    Args:
        path: The file. UTF-8, with or without a byte order mark.
        what: How the file is called in an error, for instance "--config_file".
        error: The kind of error to raise.

    Returns:
        The parsed table, and the text it came from (for `line_of`).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise error(f"{what}: {path} does not exist. Check the path.") from None
    except UnicodeDecodeError:
        raise error(f"{what}: {path} is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as fault:
        raise error(f"{what}: {path} cannot be read ({fault.strerror}).") from None
    return parse_toml(text, f"{what}: {path}", error), text


def parse_toml(text: str, source: str, error: type[UserError]) -> dict[str, Any]:
    """Parse TOML; `source` begins an error message."""
    loads, decode_errors = _library()
    try:
        return loads(text.replace("\r\n", "\n"))
    except decode_errors as fault:
        line = _error_line(fault)
        place = f"line {line}: " if line else ""
        reason = re.sub(r"\s*\((at )?(line|end).*?\)$", "", str(fault)).strip().rstrip(".")
        advice = _backslash_hint(text, line) or "Mend the TOML there."
        if re.search("overwrite|already exists|[Dd]uplicate", reason):
            reason, advice = "a key or a table stands there twice", "Remove one of them."
        raise error(f"{source}: {place}{reason}. {advice}") from None


def line_of(text: str, key: str, occurrence: int = 0) -> int | None:
    """Line, counted from 1, where `key` is assigned for the n-th time; None if it is written in another way."""
    pattern = re.compile(rf"""^\s*["']?{re.escape(key)}["']?\s*=""")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)]
    return lines[occurrence] if occurrence < len(lines) else None


def _library() -> tuple[Any, tuple[type[Exception], ...]]:
    """The function that parses, and what it raises."""
    if importlib.util.find_spec("tomllib"):  # Python 3.11 and later
        tomllib = importlib.import_module("tomllib")
        return tomllib.loads, (tomllib.TOMLDecodeError,)
    toml = importlib.import_module("toml")
    return toml.loads, (toml.TomlDecodeError, IndexError)  # IndexError: for some unfinished texts


def _error_line(fault: Exception) -> int | None:
    found = re.search(r"line (\d+)", str(fault))
    return int(found.group(1)) if found else None


def _backslash_hint(text: str, line: int | None) -> str:
    lines = text.splitlines()
    suspect = lines[line - 1] if line and line <= len(lines) else ""
    if not re.search(r'"[^"]*\\[^"]*"?', suspect):
        return ""
    return "A backslash in \"...\" begins an escape: use '...' or / in paths."
