"""Reading files of sample prompts: `.txt` has a prompt a line, `.toml` and `.json` have tables.

What is wrong in a line is a warning that names it; what is wrong with a file is an OptionError.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from library.data.files.json_faults import describe_fault
from library.data.files.strict_json import parse_json
from library.errors import OptionError
from library.log import get_logger
from library.options.toml_file import parse_toml
from library.training.sampling.prompt_lines import KINDS, WANTED, parse_prompt_line, shortened

logger = get_logger(__name__)

FLAG = "--sample_prompts"
_MAX_BYTES = 16 * 1024**2  # a larger file is something else

Settings = dict[str, Any]


def read_prompt_file(path: Path) -> bytes:
    """The content of a prompt file.

    Raises:
        OptionError: It is missing, cannot be read, or is far too large.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise OptionError(f"{FLAG}: {path} does not exist. Check the path.") from None
    except OSError as error:
        if path.is_dir():
            raise OptionError(
                f"{FLAG}: {path} cannot be read: it is a folder. Give a .txt, .toml or .json file."
            ) from None
        raise OptionError(f"{FLAG}: {path} cannot be read ({error.strerror or error}). Check its rights.") from None
    if len(content) > _MAX_BYTES:
        raise OptionError(f"{FLAG}: {path} has more than {_MAX_BYTES:,} bytes. Give a file of prompts.")
    return content


def parse_settings(path: Path, content: bytes) -> list[tuple[str, Settings]]:
    """The settings of each prompt as the file has them, each with its place ("prompts.txt line 3") for messages.

    Raises:
        OptionError: The file is of another type, or malformed.
    """
    parsers = {".txt": _parse_lines, ".toml": _parse_toml, ".json": _parse_json}
    parse = parsers.get(path.suffix.lower())
    if parse is None:
        raise OptionError(f"{FLAG}: {path} ends in {path.suffix or 'nothing'!r}. Give a .txt, .toml or .json file.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{FLAG}: {path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    return list(parse(path, text))


def warn(place: str, problem: str) -> None:
    """Tell what is wrong with one prompt."""
    logger.warning("%s %s: %s.", FLAG, place, problem)


def _parse_lines(path: Path, content: str) -> Iterator[tuple[str, Settings]]:
    for number, line in enumerate(content.splitlines(), start=1):
        text, place = line.strip(), f"{path} line {number}"
        if not text or line.startswith("#"):
            continue
        if text.startswith("#"):
            warn(place, "is a prompt, because of the blanks before its #; remove them to make it a comment")
        yield place, _settings_of(text, place)


def _parse_toml(path: Path, content: str) -> Iterator[tuple[str, Settings]]:
    try:
        table = parse_toml(content, f"{FLAG}: {path}", OptionError)
    except (RecursionError, ValueError) as error:  # of numbers with thousands of digits, and of deep brackets
        raise OptionError(f"{FLAG}: {path} cannot be read as TOML ({error}). Mend it.") from None
    prompt = table.get("prompt")
    subsets = prompt.get("subset") if isinstance(prompt, dict) else None
    if not isinstance(prompt, dict) or not isinstance(subsets, list):
        raise OptionError(f"{FLAG}: {path} has no [[prompt.subset]]. Write each prompt under a [[prompt.subset]].")
    defaults = {key: value for key, value in prompt.items() if key != "subset"}
    entries = [({**defaults, **entry} if isinstance(entry, dict) else entry) for entry in subsets]
    yield from _check_entries(path, entries, "[[prompt.subset]]")


def _parse_json(path: Path, content: str) -> Iterator[tuple[str, Settings]]:
    repeated: list[str] = []
    try:
        entries = parse_json(content, repeated)
    except json.JSONDecodeError as error:
        place, reason = describe_fault(error)
        raise OptionError(f"{FLAG}: {path} {place}: not valid JSON ({reason}).") from None
    if repeated:
        raise OptionError(f"{FLAG}: {path}: {repeated[0]} stands twice in one entry. Remove one of them.")
    if not isinstance(entries, list):
        raise OptionError(f"{FLAG}: {path} must be a list of prompts, got {type(entries).__name__}.")
    yield from _check_entries(path, entries, "entry")


def _check_entries(path: Path, entries: list[Any], what: str) -> Iterator[tuple[str, Settings]]:
    """Check all entries before the first is used."""
    problems: list[str] = []
    result = []
    for number, entry in enumerate(entries, start=1):
        place = f"{path} {what} {number}"
        if isinstance(entry, str):
            result.append((place, _settings_of(entry, place)))
        elif isinstance(entry, dict):
            problems.extend(f"{what} {number}: {problem}" for problem in _entry_problems(entry))
            result.append((place, entry))
        else:
            problems.append(f"{what} {number}: neither a table nor a text")
    if problems:
        raise OptionError(f"{FLAG}: {path}: {'; '.join(problems)}.")
    yield from result


def _entry_problems(entry: Mapping[str, Any]) -> Iterator[str]:
    if "prompt" not in entry:
        yield "no prompt"
    for key, value in entry.items():
        if key not in KINDS:
            near = get_close_matches(key, KINDS, n=1)
            yield f"unknown key {shortened(key)}" + (f" (did you mean {near[0]}?)" if near else "")
        elif not _fits(value, KINDS[key]):
            yield f"{key} must be {WANTED[KINDS[key]]}, got {_quoted(value)}"
        elif isinstance(value, str) and not _is_text(value):
            yield f"{key} has half a character (\\ud800 to \\udfff)"


def _is_text(value: str) -> bool:
    """JSON can write what is no text: one half of a character that takes two."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _fits(value: Any, form: str) -> bool:
    if form == "any":
        return True
    if form in ("text", "word"):
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        is_number = math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of floats
        return False
    return is_number and value >= 0 and (form == "float" or value == int(value))


def _quoted(value: Any) -> str:
    """The value in a message; Python does not print numbers of thousands of digits."""
    return "a far larger number" if isinstance(value, int) and value > sys.float_info.max else shortened(repr(value))


def _settings_of(line: str, place: str) -> Settings:
    parsed = parse_prompt_line(line)
    for problem in parsed.problems:
        warn(place, problem)
    return parsed.settings
