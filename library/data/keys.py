"""The keys of a dataset file: what each may hold and where it may stand.

One table; the checks, the messages and the table of the user guide follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from library.data.config_file import BACKSLASH_ADVICE
from library.records import Size

Level = Literal["top", "general", "dataset", "subset"]

INTERPOLATIONS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")

TABLE_NAMES: dict[Level, str] = {
    "general": "[general]",
    "dataset": "[[datasets]]",
    "subset": "[[datasets.subsets]]",
}


@dataclass(frozen=True)
class Key:
    """What a key may hold, and where it may stand.

    Attributes:
        kind: Type of the value; "num" takes whole and broken numbers.
        levels: Tables the key may stand in.
        default: Where neither the file nor the command line gives a value.
        low: Smallest number allowed; for texts the least length.
        high: Largest number allowed.
        choices: Texts allowed, if not all.
        is_later: Anything but the default is refused: what it asks for does not exist yet.
        has_effect: Else a value is accepted with a warning.
    """

    kind: Literal["int", "num", "bool", "str", "path", "size", "any"]
    levels: tuple[Level, ...]
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    is_later: bool = False
    has_effect: bool = True


_DATASET: tuple[Level, ...] = ("general", "dataset")
_ALL: tuple[Level, ...] = ("general", "dataset", "subset")
_SUBSET: tuple[Level, ...] = ("subset",)

KEYS: dict[str, Key] = {
    "resolution": Key("size", _DATASET, low=1),
    "batch_size": Key("int", _DATASET, 1, low=1),
    "enable_bucket": Key("bool", _DATASET, False),
    "min_bucket_reso": Key("int", _DATASET, 256, low=1),
    "max_bucket_reso": Key("int", _DATASET, 1024, low=1),
    "bucket_reso_steps": Key("int", _DATASET, 64, low=1),
    "bucket_no_upscale": Key("bool", _DATASET, False),
    "validation_split": Key("num", _DATASET, 0.0, low=0, high=1, is_later=True),
    "validation_seed": Key("int", _DATASET, has_effect=False),
    "network_multiplier": Key("num", _DATASET, 1.0, has_effect=False),
    "resize_interpolation": Key("str", _ALL, choices=INTERPOLATIONS),
    "image_dir": Key("path", _SUBSET, low=1),
    "num_repeats": Key("int", _ALL, 1, low=1),
    "class_tokens": Key("str", _ALL),
    "caption_extension": Key("str", _ALL, ".caption", low=1),
    "caption_prefix": Key("str", _ALL),
    "caption_suffix": Key("str", _ALL),
    "caption_separator": Key("str", _ALL, ",", low=1),
    "shuffle_caption": Key("bool", _ALL, False),
    "keep_tokens": Key("int", _ALL, 0, low=0),
    "keep_tokens_separator": Key("str", _ALL, ""),
    "secondary_separator": Key("str", _ALL),
    "enable_wildcard": Key("bool", _ALL, False),
    "caption_dropout_rate": Key("num", _ALL, 0.0, low=0, high=1),
    "caption_dropout_every_n_epochs": Key("int", _ALL, 0, low=0),
    "caption_tag_dropout_rate": Key("num", _ALL, 0.0, low=0, high=1),
    "token_warmup_min": Key("int", _ALL, 1, low=0),
    "token_warmup_step": Key("num", _ALL, 0.0, low=0),
    "flip_aug": Key("bool", _ALL, False),
    "random_crop": Key("bool", _ALL, False),
    "color_aug": Key("bool", _ALL, False, is_later=True),
    "face_crop_aug_range": Key("any", _ALL, is_later=True),
    "custom_attributes": Key("any", _ALL, {}, is_later=True),
    "cache_info": Key("bool", _ALL, False, is_later=True),
    "is_reg": Key("bool", _SUBSET, False, is_later=True),
    "alpha_mask": Key("bool", _SUBSET, False, is_later=True),
    "metadata_file": Key("any", _SUBSET, is_later=True),
    "conditioning_data_dir": Key("any", _SUBSET, is_later=True),
}

_SECTIONS: dict[Level, tuple[str, ...]] = {"top": ("general", "datasets"), "dataset": ("subsets",)}
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (int, "a whole number"),
    "num": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a text in quotes"),
    "path": (str, "a path in quotes"),
}


def names_at(level: Level) -> tuple[str, ...]:
    """Everything that may stand in a table of this level, sections included."""
    return (*_SECTIONS.get(level, ()), *(name for name, key in KEYS.items() if level in key.levels))


def explain_unknown(name: str, level: Level) -> str:
    """Why `name` may not stand in a table of this level, and what was probably meant."""
    if name == "subsets":
        return "'subsets' belongs in a dataset, written [[datasets.subsets]]"
    if name in KEYS:
        places = [TABLE_NAMES[place] for place in KEYS[name].levels]
        return f"'{name}' belongs in {' or '.join(places)}"
    near = get_close_matches(name, names_at(level), n=1) or get_close_matches(name, KEYS, n=1)
    return f"unknown key '{name}'" + (f", the nearest is '{near[0]}'" if near else "")


def read_value(name: str, value: object) -> Any:
    """The value as it is used: a `Size` for a resolution, a float for "num", else as it is.

    Raises:
        ValueError: Says what the key may hold and what it got.
    """
    key = KEYS[name]
    if key.kind == "size":
        return _read_size(name, value)
    if key.kind != "any":
        _check_type(name, key.kind, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(name, key, value)
    if isinstance(value, str):
        _check_text(name, key, value)
    if key.is_later and value != key.default:
        raise ValueError(f"{name} is not available yet; remove it")
    return float(value) if key.kind == "num" and isinstance(value, int) else value


def read_option(name: str, value: object) -> Any:
    """As `read_value`, for a value from the command line, where a resolution may be text: "1024" or "832,1216".

    Raises:
        ValueError: As `read_value`; the key is written as a flag.
    """
    if KEYS[name].kind == "size" and isinstance(value, str):
        try:
            numbers = [int(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"--{name} must be a number of pixels or width,height, got '{value}'") from None
        value = numbers[0] if len(numbers) == 1 else numbers
    try:
        return read_value(name, value)
    except ValueError as error:
        raise ValueError(f"--{error}" if str(error).startswith(name) else str(error)) from None


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


def _show(value: object) -> str:
    """A value as it looks in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"'{value}'"
    return "a table" if isinstance(value, Mapping) else str(value)
