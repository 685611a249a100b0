"""One command-line option: what is declared of it, and how its value is read from text and from TOML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

Kind = Literal["flag", "int", "float", "str", "path", "int_or_float", "int_or_auto"]

AUTO = "auto"
NOWHERE: Mapping[str, str] = {}  # no option that only other scripts have

WANTED = {
    "flag": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "path": "a path",
    "int_or_float": 'a whole number of steps, a share below 1, or a share as "10%"',
    "int_or_auto": "a whole number, or auto",
}


@dataclass(frozen=True)
class Declared:
    """What `opt(...)` says of an option beyond name, type and default. The meanings are told there."""

    help: str
    unit: str | None = None
    choices: tuple[str | int, ...] = ()
    aliases: tuple[str, ...] = ()
    nargs: str | None = None
    kind: Kind | None = None
    later: str | None = None
    no_effect: str | None = None
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    is_secret: bool = False
    is_free_text: bool = False
    zero_is_off: bool = False
    words: tuple[str, ...] = ()
    is_positional: bool = False


@dataclass(frozen=True)
class Option:
    """One option of a script.

    Attributes:
        name: Field of the group, flag without its hyphens, key in TOML.
        kind: What a value is.
        default: The value if nothing is given.
        is_list: Takes any number of values; the value is a tuple.
        group: Title of the group, for help and documentation.
        declared: The rest.
    """

    name: str
    kind: Kind
    default: object
    is_list: bool
    group: str
    declared: Declared

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return f"--{self.name}"

    @property
    def flags(self) -> tuple[str, ...]:
        """The option and its other names as they are typed."""
        names = self.declared.aliases
        return (self.flag, *(name if name.startswith("-") else f"--{name}" for name in names))

    @property
    def place(self) -> str:
        """How an option is called that is given by its place among the arguments."""
        return self.name.upper()

    @property
    def shown(self) -> str:
        """How messages call the option."""
        return self.place if self.declared.is_positional else self.flag

    def from_text(self, text: str) -> object:
        """The value that `text` stands for; None where it means "not given".

        Raises:
            ValueError: The text is no such value. The message goes on after the option's name.
        """
        is_empty = text == "" or (self.kind == "path" and not text.strip())
        if is_empty and self.default is None and self.kind in ("str", "path"):
            return None
        return self._checked(_READERS[self.kind](text), text)

    def from_toml(self, value: object) -> object:
        """The value that a TOML value stands for; None where it means "not given". Types are strict, but for a number
        where a list of numbers is asked for.

        Raises:
            ValueError: The value is of another type. The message goes on after the option's name.
        """
        if self.is_list:
            if self.kind in ("float", "int") and not isinstance(value, list):
                value = [value]
            if not isinstance(value, list):
                raise ValueError(f"needs a list in square brackets, got {_toml_text(value)}.")
            items = tuple(self._item_from_toml(item) for item in value)
            return items or None
        return self._item_from_toml(value)

    def problem(self, value: object) -> str | None:
        """What is wrong with a typed value's range or choice, as the rest of a sentence; None if nothing is."""
        if value is None or value == self.default:
            return None
        for item in value if isinstance(value, tuple) else (value,):
            if found := self._choice_problem(item) or self._range_problem(item):
                return found
        return None

    def _item_from_toml(self, value: object) -> object:
        if isinstance(value, str):
            if self.kind == "int_or_float" and value.strip().endswith("%"):
                return self.from_text(value)
            if self.kind == "int_or_auto" and value.strip() == AUTO:
                return AUTO
            if self.kind == "flag" and value in self.declared.words:
                return value
            if self.kind in ("str", "path"):
                _refuse_control_characters(value, self.kind)
                return self.from_text(value)
        if self.kind == "flag" and isinstance(value, bool):
            return value
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_whole = self.kind in ("int", "int_or_auto") and isinstance(value, int)
        if is_number and (self.kind in ("float", "int_or_float") or is_whole):
            return self.from_text(repr(value))
        raise ValueError(f"needs {self.wanted}, got {_toml_text(value)}.")

    @property
    def wanted(self) -> str:
        """What a value has to be, in words."""
        if self.declared.choices:
            return f"one of {', '.join(map(str, self.declared.choices))}"
        if self.declared.words:
            return f"true, false or {' or '.join(self.declared.words)}"
        return WANTED[self.kind]

    def _checked(self, value: object, text: str) -> object:
        if value is None:
            raise ValueError(f"needs {self.wanted}, got '{text}'.")
        if self.declared.zero_is_off and value == 0:
            return None
        if found := self._choice_problem(value):
            raise ValueError(found)
        return value

    def _choice_problem(self, value: object) -> str | None:
        if not self.declared.choices or value in self.declared.choices or value == self.default:
            return None
        return f"needs {self.wanted}, got '{value}'."

    def _range_problem(self, value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        low, high, above = self.declared.minimum, self.declared.maximum, self.declared.above
        if above is not None and value <= above:
            return f"must be above {above:.12g}, got {value:.12g}."
        is_outside = (low is not None and value < low) or (high is not None and value > high)
        if not is_outside:
            return None
        if low is not None and high is not None and high < 2**53:
            return f"must be between {low:.12g} and {high:.12g}, got {value:.12g}."
        if high is not None and value > high:
            return f"must be at most {high}, got {value}."
        limit = f"least {low:.12g}" if low is not None else f"most {high:.12g}"
        return f"must be at {limit}, got {value:.12g}."


def nearest_hint(name: str, names: Sequence[str], prefix: str = "") -> str:
    """A sentence naming what the user may have meant, with a leading blank; empty if nothing is near."""
    plain = name.replace("-", "_").lower()
    near = get_close_matches(plain, names, n=1, cutoff=0.6) or [other for other in names if other.startswith(plain)]
    return f" Did you mean {prefix}{near[0]}?" if near and plain else ""


def _read_int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _read_int_or_auto(text: str) -> int | str | None:
    return AUTO if text.strip() == AUTO else _read_int(text)


def _read_float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_int_or_float(text: str) -> int | float | None:
    """Whole numbers are steps, other numbers below 1 are shares of all steps; a share is always a float."""
    text = text.strip()
    if text.endswith("%"):
        percent = _read_float(text[:-1])
        return percent / 100 if percent is not None and 0 <= percent <= 100 else None
    value = _read_float(text)
    if value is None or value < 0:
        return None
    if value == int(value):
        return int(value)
    return value if value < 1 else None


_READERS: dict[Kind, Callable[[str], object]] = {
    "int": _read_int,
    "float": _read_float,
    "str": str,
    "path": Path,
    "int_or_float": _read_int_or_float,
    "int_or_auto": _read_int_or_auto,
    "flag": lambda text: None,
}


def _toml_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"the text '{value}'" if isinstance(value, str) else f"{value!r}"


def _refuse_control_characters(text: str, kind: Kind) -> None:
    if kind == "path" and any(ord(character) < 32 for character in text):
        raise ValueError(
            f"has a control character in {text!r}: in \"...\" a backslash begins an escape. Use '...' or /."
        )
