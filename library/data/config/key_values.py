"""What a key of a dataset file holds: types, ranges and choices, from the file or from the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from library.data.config.config_file import BACKSLASH_ADVICE
from library.data.config.keys import KEYS, Key
from library.data.config.specs import Colour
from library.data.files.text_files import is_text_encoding, is_whole
from library.records import Size

ATTRIBUTES = ("diff_output_preservation",)  # keys of custom_attributes

_COLOURS: dict[str, Colour] = {"white": (255, 255, 255), "black": (0, 0, 0)}
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (int, "a whole number"),
    "num": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a text in quotes"),
    "path": (str, "a path in quotes"),
    "encoding": (str, "the name of an encoding in quotes"),
    "colour": (str, 'a colour in quotes ("white", "black" or "#rrggbb")'),
    "attributes": (Mapping, "a table"),
}


def read_value(name: str, value: object) -> Any:
    """The value as it is used: a `Size` for a resolution, red, green and blue for a colour, a float for "num".

    Raises:
        ValueError: Says what the key may hold and what it got.
    """
    key = KEYS[name]
    if key.kind in _KINDS:
        _check_type(name, key.kind, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(name, key, value)
    if isinstance(value, str):
        _check_text(name, key, value)
    if reader := _READERS.get(key.kind):
        return reader(name, value)
    return float(value) if key.kind == "num" and isinstance(value, int) else value


def read_option(name: str, value: object) -> Any:
    """As `read_value`, for a value from the command line, where numbers may be text: "1024", "832,1216", "0.5,1".

    Raises:
        ValueError: As `read_value`; the key is written as a flag.
    """
    kind = KEYS[name].kind
    try:
        if kind in ("size", "range") and isinstance(value, str):
            value = _split_numbers(name, kind, value)
        return read_value(name, value)
    except ValueError as error:
        raise ValueError(f"--{error}" if str(error).startswith(name) else str(error)) from None


def default_value(name: str) -> Any:
    """What applies where nothing is given."""
    default = KEYS[name].default
    return None if default is None else read_value(name, default)


def _split_numbers(name: str, kind: str, text: str) -> object:
    words = "a number of pixels or width,height" if kind == "size" else "two numbers low,high"
    read: Callable[[str], float] = int if kind == "size" else float
    try:
        numbers = [read(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be {words}, got '{text}'") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _check_type(name: str, kind: str, value: object) -> None:
    types, words = _KINDS[kind]
    is_wrong_bool = isinstance(value, bool) and kind != "bool"
    if is_wrong_bool or not isinstance(value, types):
        hint = "; remove the quotes" if isinstance(value, str) and value.strip() else ""
        raise ValueError(f"{name} must be {words}, got {_show(value)}{hint}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be {words}, got {value}")


def _check_range(name: str, key: Key, value: float) -> None:
    if key.low is not None and key.high is not None and not key.low <= value <= key.high:
        raise ValueError(f"{name} must be from {key.low} to {key.high}, got {value}")
    if key.low is not None and value < key.low:
        raise ValueError(f"{name} must be at least {key.low}, got {value}")


def _check_text(name: str, key: Key, value: str) -> None:
    if key.choices and value not in key.choices:
        near = get_close_matches(value, key.choices, n=1)
        nearest = f", the nearest is '{near[0]}'" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(key.choices)}, got '{value}'{nearest}")
    if len(value) < (key.low or 0):
        raise ValueError(f"{name} must not be empty")
    if not is_whole(value):
        raise ValueError(f"{name} holds half a character ({value!a:.60}); write the whole one")
    if key.kind == "path" and any(ord(letter) < 32 for letter in value):
        raise ValueError(f"{name} holds a control character ({value!r}); {BACKSLASH_ADVICE}")


def _read_size(name: str, value: object) -> Size:
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        raise ValueError(f"{name} must be a whole number or [width, height], got {_show(value)}")
    if any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise ValueError(f"{name} must be a whole number or [width, height], got {_show(value)}")
    if min(sides) < 1:
        raise ValueError(f"{name} must be at least 1, got {_show(value)}")
    return Size(*sides)


def _read_range(name: str, value: object) -> tuple[float, float]:
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != 2 or not all(_is_number(number) for number in numbers):
        raise ValueError(f"{name} must be two numbers [low, high], got {_show(value)}")
    if not 0 < numbers[0] <= numbers[1]:
        raise ValueError(f"{name} must be two numbers above 0, the lower one first, got {_show(value)}")
    return float(numbers[0]), float(numbers[1])


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_colour(name: str, value: str) -> Colour:
    if value in _COLOURS:
        return _COLOURS[value]
    if not re.fullmatch("#[0-9a-fA-F]{6}", value):
        raise ValueError(f'{name} must be "white", "black" or "#rrggbb", got \'{value}\'')
    red, green, blue = (int(value[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


def _read_encoding(name: str, value: str) -> str:
    if not is_text_encoding(value):
        raise ValueError(f"{name} '{value}' is not known; a usual one is 'cp1252'")
    return value


def _read_attributes(name: str, value: Mapping[str, object]) -> dict[str, object]:
    for attribute, content in value.items():
        if attribute not in ATTRIBUTES:
            near = get_close_matches(attribute, ATTRIBUTES, n=1)
            known = f"the nearest is '{near[0]}'" if near else f"known is {', '.join(ATTRIBUTES)}"
            raise ValueError(f"{name} has an unknown key '{attribute}', {known}")
        if not isinstance(content, bool):
            raise ValueError(f"{attribute} in {name} must be true or false, got {_show(content)}")
    return dict(value)


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "size": _read_size,
    "range": _read_range,
    "colour": _read_colour,
    "encoding": _read_encoding,
    "attributes": _read_attributes,
}


def _show(value: object) -> str:
    """A value as it looks in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"'{value}'"
    return "a table" if isinstance(value, Mapping) else str(value)
