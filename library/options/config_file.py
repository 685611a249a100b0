"""The file of `--config_file`: options as TOML. Read with the checks of the command line, and written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from library.errors import OptionError, OutputError
from library.options.option import NOWHERE, Option, nearest_hint
from library.options.toml_file import line_of, read_toml

ABOUT_FILES = ("config_file", "output_config")  # these two stay on the command line


def config_path(given: Path) -> Path:
    """The path with `.toml` at its end."""
    return given if given.suffix.lower() == ".toml" else Path(f"{given}.toml")


def read_config_file(
    path: Path,
    options: Mapping[str, Option],
    elsewhere: Mapping[str, str] = NOWHERE,
    of_programs: Mapping[str, str] = NOWHERE,
) -> tuple[dict[str, object], list[str], list[str]]:
    """Read options from TOML. One level of tables is flattened; the names of tables mean nothing.

    Args:
        path: The file.
        options: The script's options by name.
        elsewhere: {option of neighbouring scripts: what to do here instead}.
        of_programs: {key that other programs write beside the options, which changes nothing: why}.

    Returns:
        Typed values by option name (None where an empty text means "not given"), problems and warnings, one sentence
        each.

    Raises:
        OptionError: The file is missing or is not TOML.
    """
    table, text = read_toml(path, "--config_file", OptionError)
    values: dict[str, object] = {}
    problems: list[str] = []
    warnings: list[str] = []
    seen: dict[str, str] = {}
    for where, key, value in _entries(table):
        option = options.get(key)
        line = line_of(text, key, 1 if key in seen else 0)
        place = f"{path}{f', line {line}' if line else ''}: "
        if isinstance(value, dict):
            problems.append(f"{place}[{where}.{key}] is a table in a table. Only one level of tables is read.")
        elif key in seen:
            problems.append(f"{place}{key} stands both in {seen[key]} and in {_name(where)}. Keep one of them.")
        elif key in ABOUT_FILES:
            problems.append(f"{place}{key} belongs on the command line, not in the file.")
        elif option is None and key in elsewhere:
            problems.append(f"{place}{key} is not an option here: {elsewhere[key]}")
        elif option is None and key in of_programs:
            warnings.append(f"{place}{key} is no option and changes nothing: {of_programs[key]}.")
        elif option is None:
            problems.append(f"{place}unknown key {key}.{nearest_hint(key, list(options)) or ' See --help.'}")
        else:
            seen[key] = _name(where)
            try:
                values[key] = option.from_toml(value)
            except ValueError as fault:
                problems.append(f"{place}{key} {fault}")
    return values, problems, warnings


def write_config_file(path: Path, values: Mapping[str, object], options: Mapping[str, Option]) -> None:
    """Write every value that is not the default as flat TOML. Secrets are left out.

    Raises:
        OptionError: The file exists.
        OutputError: It cannot be written.
    """
    lines = [
        f"{name} = {as_toml(values[name])}\n"
        for name, option in options.items()
        if name in values and not _stays_out(option) and values[name] not in (None, option.default)
    ]
    try:
        with open(path, "x", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
    except FileExistsError:
        raise OptionError(f"--output_config: {path} exists. Remove it, or give another --config_file.") from None
    except OSError as fault:
        raise OutputError(f"--output_config: {path} cannot be written ({fault.strerror}).") from None


def _entries(table: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from ((key, inner, item) for inner, item in value.items())
        else:
            yield "", key, value


def _name(table: str) -> str:
    return f"[{table}]" if table else "the top level"


def _stays_out(option: Option) -> bool:
    return option.name in ABOUT_FILES or option.declared.is_secret


def as_toml(value: object) -> str:
    """A value as TOML writes it: texts, numbers, yes and no, and lists of these."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
