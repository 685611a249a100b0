"""What `--xyz` compares: one to three axes, and the plan of the pictures at all their crossings.

An axis is a name with values, as in "lora=0,0.5,1"; "prompt" stands for all prompts of the run. The first axis goes
across a sheet, the second down, the third from one sheet to the next. Pictures are planned so that models, then
networks are loaded as few times as possible.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from library.errors import OptionError
from library.generation.png_text import SAMPLER_TITLES
from library.generation.prompt_lines import shortened

OPTION = "--xyz"
MAX_CELLS = 10_000
_PROMPT = "prompt"


class Place(NamedTuple):
    """Of a picture: numbers of its column, its row and its sheet, from 0."""

    column: int
    row: int
    sheet: int


@dataclass(frozen=True)
class Axis:
    """One axis: its name and the values along it."""

    name: str
    values: tuple[Any, ...]

    def title(self, number: int) -> str:
        """What stands beside the pictures of one value."""
        value = self.values[number]
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if self.name in _FILES:
            text = re.split(r"[\\/]", text.rstrip("\\/"))[-1].removesuffix(".safetensors")
        return text if self.name == _PROMPT else f"{self.name} {text}"


@dataclass(frozen=True)
class Cell:
    """One picture of the plan: where it stands, and {axis: value} of what is special about it."""

    place: Place
    values: Mapping[str, Any]


def parse_axes(texts: Sequence[str], prompts: Sequence[str]) -> tuple[Axis, ...]:
    """The axes that the option names.

    Args:
        texts: Values of the option: `name=value,value`, with quotes around a value with commas, or "prompt".
        prompts: Of the run. There is an axis of them if there are several.

    Raises:
        OptionError: An axis or value is unknown or malformed, there are too many, or an axis of prompts is missing.
    """
    axes = tuple(_axis(text, prompts) for text in texts)
    names = [axis.name for axis in axes]
    if not 1 <= len(axes) <= 3:
        raise OptionError(f'{OPTION} takes one to three axes, got {len(axes)}. Write for example "lora=0,1" "prompt".')
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise OptionError(f'{OPTION}: the axis "{repeated}" is given twice. Put all of its values behind one.')
    if len(prompts) > 1 and _PROMPT not in names:
        raise OptionError(f'{OPTION}: there are {len(prompts)} prompts, but no axis for them. Add "prompt".')
    number = math.prod(len(axis.values) for axis in axes)
    if number > MAX_CELLS:
        raise OptionError(f"{OPTION} asks for {number:,} pictures, the most is {MAX_CELLS:,}. Give fewer values.")
    return axes


def plan_cells(axes: Sequence[Axis]) -> list[Cell]:
    """All crossings, in the order in which they are drawn: what is slow to change changes last."""
    slow_first = sorted(range(len(axes)), key=lambda number: _ORDER.index(axes[number].name))
    cells = []
    for numbers in itertools.product(*(range(len(axes[axis].values)) for axis in slow_first)):
        own = dict(zip(slow_first, numbers, strict=True))
        values = {axes[axis].name: axes[axis].values[number] for axis, number in sorted(own.items())}
        cells.append(Cell(Place(*(own.get(axis, 0) for axis in range(3))), values))
    return cells


def _axis(text: str, prompts: Sequence[str]) -> Axis:
    name, equals, listed = text.partition("=")
    name = name.strip().lower()
    if name == _PROMPT:
        if equals:
            raise OptionError(f'{OPTION}: "prompt" takes no values. Write the prompts into --from_file.')
        return Axis(_PROMPT, tuple(prompts))
    read = _VALUES.get(name)
    if read is None:
        near = get_close_matches(name, _ORDER, n=1, cutoff=0.5)
        advice = f'Did you mean "{near[0]}"?' if near else f"Known are {', '.join(_ORDER)}."
        raise OptionError(f'{OPTION}: no axis is called "{shortened(name)}". {advice}')
    texts = [value.strip() for value in next(csv.reader([listed], skipinitialspace=True), [])]
    if not texts or not all(texts):
        raise OptionError(f'{OPTION}: "{shortened(text)}" lacks a value. Write {name}=value,value.')
    return Axis(name, tuple(_read(name, read, value) for value in texts))


def _read(name: str, read: tuple[str, Callable[[str], Any]], text: str) -> Any:
    wanted, convert = read
    try:
        return convert(text)
    except ValueError:
        raise OptionError(f'{OPTION}: {name} needs {wanted}, got "{shortened(text)}".') from None


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _whole(text: str, least: int, most: int) -> int:
    value = int(text)
    if not least <= value <= most:
        raise ValueError(text)
    return value


def _sampler(text: str) -> str:
    if text.removeprefix("k_") not in SAMPLER_TITLES:
        raise ValueError(text)
    return text


_FILES = ("ckpt", "weights")
_VALUES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "ckpt": ("paths of models", str),
    "weights": ("paths of networks", str),
    "lora": ("numbers", _number),
    "sampler": (f"samplers ({', '.join(SAMPLER_TITLES)})", _sampler),
    "steps": ("whole numbers of 1 to 1000", lambda text: _whole(text, 1, 1000)),
    "scale": ("numbers", _number),
    "seed": ("whole numbers of 0 or more", lambda text: _whole(text, 0, 2**63 - 1)),
}
_ORDER = (*_VALUES, _PROMPT)  # slowest to change first
