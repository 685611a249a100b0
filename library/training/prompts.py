"""Sample prompts: files of prompts with options, read into one frozen value per picture.

A `.txt` file has a prompt a line with options as in "a cat --w 768 --h 512 --d 42 --s 28 --l 4.5 --n blurry",
`.toml` and `.json` files have tables. What is wrong in a line is a warning that names it; what is wrong
with a file is an OptionError at the start of a run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from library.errors import OptionError
from library.log import get_logger
from library.options.toml_file import read_toml

logger = get_logger(__name__)

FLAG = "--sample_prompts"
MAX_STEPS = 1000
MIN_SIDE = 64
MAX_SEED = 2**63 - 1
NO_EFFECT_WITH_FLOW = frozenset(
    {"guidance_scale", "sample_sampler", "controlnet_image", "cfg_trunc_ratio", "renorm_cfg", "flow_shift"}
)
"""Settings that the flow sampler does not have: the schedule and the sampler are fixed."""

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
_WANTED = {"int": "a whole number of 0 or more", "float": "a number of 0 or more", "word": "a name", "text": "a text"}
_KINDS = {"prompt": "text", **dict(_OPTIONS.values()), "flow_shift": "any"}  # what tables may hold


@dataclass(frozen=True)
class SamplePrompt:
    """One picture to draw while training.

    Attributes:
        prompt: Its text; may be empty.
        negative_prompt: What guidance leads away from; empty is encoded like any text.
        width: In pixels, a multiple of what the model needs.
        height: As above.
        seed: None for another picture each time.
        sample_steps: 1..1000.
        scale: Guidance scale; 1 is without guidance.
        index: Place in the file, from 0.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    seed: int | None
    sample_steps: int
    scale: float
    index: int = 0


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


def load_prompts(
    path: Path,
    *,
    size: int = 1024,
    steps: int = 28,
    scale: float = 4.5,
    multiple: int = 16,
    no_effect: Collection[str] = NO_EFFECT_WITH_FLOW,
) -> tuple[SamplePrompt, ...]:
    """Read a prompt file and fill in what it leaves open.

    Args:
        path: A `.txt`, `.toml` or `.json` file.
        size: Width and height of prompts that name none, in pixels.
        steps: Sampling steps of prompts that name none.
        scale: Guidance scale of prompts that name none.
        multiple: Sides are rounded down to multiples of this.
        no_effect: Settings that the model's sampler ignores; using one is a warning.

    Raises:
        OptionError: The file is missing, unreadable, of another type, or malformed.
    """
    prompts: list[SamplePrompt] = []
    for place, settings in load_settings(path):
        idle = [key for key in settings if key in no_effect]
        if idle:
            _warn(place, f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect for this model")
        defaults = {"width": size, "height": size, "sample_steps": steps, "scale": scale}
        prompts.append(_complete({**defaults, **settings}, place, multiple=multiple, index=len(prompts)))
    if not prompts:
        raise OptionError(f"{FLAG}: {path} has no prompts. Write one a line.")
    return tuple(prompts)


def load_settings(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The settings of each prompt as the file has them, each with its place ("prompts.txt line 3") for messages.

    Raises:
        OptionError: As `load_prompts`.
    """
    readers = {".txt": _read_lines, ".toml": _read_toml, ".json": _read_json}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise OptionError(f"{FLAG}: {path} ends in {path.suffix or 'nothing'!r}. Give a .txt, .toml or .json file.")
    return list(reader(path))


def _suspicions(text: str) -> Iterator[str]:
    """What looks like an option and is part of the prompt."""
    names = "|".join(_OPTIONS)
    found = re.search(rf"(^|\S)--({names})(\s+\S+|$)", text, re.IGNORECASE)
    if found:
        begin = "write the prompt before it" if not found.group(1) else "put a blank before it"
        yield f'"{found.group(0).lstrip()}" is taken as part of the prompt; {begin} if it is an option'


def _read_option(piece: str, settings: dict[str, Any]) -> str | None:
    """Add one option to `settings`; what is wrong with it, or None."""
    name, _, value = piece.partition(" ")
    known = _OPTIONS.get(name.lower())
    if known is None:
        return f'"--{piece}" is not an option and is left out; known are {", ".join(f"--{key}" for key in _OPTIONS)}'
    key, form = known
    value = value.strip()
    found = re.match(_FORMS[form], value)
    read = _to_value(found.group(), form) if found else None
    if found is None or read is None:
        return f"--{name} {value or 'without a value'} is left out: it needs {_WANTED[form]}"
    repeated = key in settings
    settings[key] = min(max(read, 1), MAX_STEPS) if key == "sample_steps" else read
    if found.end() < len(value) or settings[key] != read:
        return f'"--{piece}" is read as {settings[key]}'
    return f"--{name} is given twice; the last one counts" if repeated else None


def _to_value(text: str, form: str) -> Any:
    if form not in ("int", "float"):
        return text.strip()
    try:
        return int(text) if form == "int" else float(text)
    except ValueError:
        return None


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise OptionError(f"{FLAG}: {path} does not exist. Check the path.") from None
    except UnicodeDecodeError as error:
        raise OptionError(f"{FLAG}: {path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise OptionError(f"{FLAG}: {path} cannot be read ({error.strerror or error}).") from None


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        text, place = line.strip(), f"{path} line {number}"
        if not text or line.startswith("#"):
            continue
        if text.startswith("#"):
            _warn(place, "is a prompt, because of the blanks before its #; remove them to make it a comment")
        yield place, _settings_of(text, place)


def _read_toml(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    table, _ = read_toml(path, FLAG, OptionError)
    prompt = table.get("prompt")
    subsets = prompt.get("subset") if isinstance(prompt, dict) else None
    if not isinstance(prompt, dict) or not isinstance(subsets, list):
        raise OptionError(f"{FLAG}: {path} has no [[prompt.subset]]. Write each prompt under a [[prompt.subset]].")
    defaults = {key: value for key, value in prompt.items() if key != "subset"}
    entries = [({**defaults, **entry} if isinstance(entry, dict) else entry) for entry in subsets]
    yield from _read_entries(path, entries, "[[prompt.subset]]")


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        entries = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise OptionError(f"{FLAG}: {path} line {error.lineno}: not valid JSON ({error.msg}).") from None
    if not isinstance(entries, list):
        raise OptionError(f"{FLAG}: {path} must be a list of prompts, got {type(entries).__name__}.")
    yield from _read_entries(path, entries, "entry")


def _read_entries(path: Path, entries: list[Any], what: str) -> Iterator[tuple[str, dict[str, Any]]]:
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
        if key not in _KINDS:
            near = get_close_matches(key, _KINDS, n=1)
            yield f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")
        elif not _fits(value, _KINDS[key]):
            yield f"{key} must be {_WANTED[_KINDS[key]]}, got {value!r}"


def _fits(value: Any, form: str) -> bool:
    if form == "any":
        return True
    if form in ("text", "word"):
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return False
    return form == "float" or value == int(value)


def _settings_of(line: str, place: str) -> dict[str, Any]:
    parsed = parse_prompt_line(line)
    for problem in parsed.problems:
        _warn(place, problem)
    return parsed.settings


def _complete(settings: Mapping[str, Any], place: str, *, multiple: int, index: int) -> SamplePrompt:
    seed = settings.get("seed")
    if seed is not None and seed > MAX_SEED:
        _warn(place, f"the seed {seed} is too large and is left out; the largest is {MAX_SEED}")
        seed = None
    return SamplePrompt(
        prompt=settings["prompt"],
        negative_prompt=settings.get("negative_prompt", ""),
        width=_side(settings, "width", place, multiple),
        height=_side(settings, "height", place, multiple),
        seed=None if seed is None else int(seed),
        sample_steps=min(max(int(settings["sample_steps"]), 1), MAX_STEPS),
        scale=float(settings["scale"]),
        index=index,
    )


def _side(settings: Mapping[str, Any], key: str, place: str, multiple: int) -> int:
    asked = int(settings[key])
    smallest = -(-MIN_SIDE // multiple) * multiple
    side = max(asked // multiple * multiple, smallest)
    if side != asked:
        _warn(place, f"{key} {asked} becomes {side}: sides are multiples of {multiple}, at least {smallest}")
    return side


def _warn(place: str, problem: str) -> None:
    logger.warning("%s %s: %s.", FLAG, place, problem)
