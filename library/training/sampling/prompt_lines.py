"""The settings of one sample prompt, and how a line of a `.txt` file says them.

A line is a prompt with options, as in "a cat --w 768 --h 512 --d 42 --s 28 --l 4.5 --n blurry".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_STEPS = 1000
_MAX_QUOTED = 80  # characters of a line in a message

# option of a line -> (setting, form of its value)
_OPTIONS: dict[str, tuple[str, str]] = {
    "w": ("width", "int"),
    "h": ("height", "int"),
    "d": ("seed", "int"),
    "s": ("sample_steps", "int"),
    "l": ("scale", "float"),
    "g": ("guidance_scale", "float"),
    "n": ("negative_prompt", "text"),
    "ss": ("sample_sampler", "word"),
    "cn": ("controlnet_image", "text"),
    "ctr": ("cfg_trunc_ratio", "float"),
    "rcfg": ("renorm_cfg", "float"),
    "fs": ("flow_shift", "text"),
}
_FORMS = {"int": r"\d+", "float": r"[\d.]+", "word": r"[A-Za-z0-9_+-]+", "text": r".+"}
WANTED = {"int": "a whole number of 0 or more", "float": "a number of 0 or more", "word": "a name", "text": "a text"}
KINDS = {"prompt": "text", **dict(_OPTIONS.values()), "flow_shift": "any"}
"""{setting: form of its value in a table}"""


@dataclass(frozen=True)
class ParsedLine:
    """Settings of a line, and a sentence for everything in it that was not understood."""

    settings: dict[str, Any]
    problems: tuple[str, ...]


def parse_prompt_line(line: str) -> ParsedLine:
    """Split a line into the prompt and its options.

    Options begin with " --", in any letter case; the last of equals wins. The prompt's own first word is
    never an option.
    """
    text, *pieces = line.split(" --")
    settings: dict[str, Any] = {"prompt": text}
    problems = list(_suspicions(text))
    for piece in pieces:
        problem = _read_option(piece.rstrip(), settings)
        if problem:
            problems.append(problem)
    return ParsedLine(settings, tuple(problems))


def shortened(text: str, length: int = _MAX_QUOTED) -> str:
    """The text in one line of at most `length` characters."""
    text = " ".join(text[: 4 * length].split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _suspicions(text: str) -> Iterator[str]:
    """What looks like an option and is part of the prompt."""
    names = "|".join(_OPTIONS)
    found = re.search(rf"(^|\S)--({names})(\s+\S+|$)", text, re.IGNORECASE)
    if found:
        begin = "write the prompt before it" if not found.group(1) else "put a blank before it"
        quoted = shortened(found.group(0).lstrip())
        yield f'"{quoted}" is taken as part of the prompt; {begin} if it is an option'


def _read_option(piece: str, settings: dict[str, Any]) -> str | None:
    """Add one option to `settings`; what is wrong with it, or None."""
    name, _, value = piece.partition(" ")
    known = _OPTIONS.get(name.lower())
    if known is None:
        listed = ", ".join(f"--{key}" for key in _OPTIONS)
        return f'"--{shortened(piece)}" is not an option and is left out; known are {listed}'
    key, form = known
    value = value.strip()
    found = re.match(_FORMS[form], value)
    read = _to_value(found.group(), form) if found else None
    if found is None or read is None:
        return f"--{name} {shortened(value) or 'without a value'} is left out: it needs {WANTED[form]}"
    repeated = key in settings
    settings[key] = min(max(read, 1), MAX_STEPS) if key == "sample_steps" else read
    if found.end() < len(value) or settings[key] != read:
        return f'"--{shortened(piece)}" is read as {shortened(str(settings[key]))}'
    return f"--{name} is given twice; the last one counts" if repeated else None


def _to_value(text: str, form: str) -> Any:
    if form not in ("int", "float"):
        return text.strip()
    try:
        value = int(text) if form == "int" else float(text)
    except ValueError:
        return None
    return value if form == "int" or math.isfinite(value) else None
