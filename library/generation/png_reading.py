"""What the text chunks of a PNG say about how the picture was made: ours in full, those of others as far as they go."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.errors import UserError
from library.generation.options.picture import MAX_STEPS
from library.generation.png_text import NEGATIVE, PARAMETERS_CHUNK, RECORD_CHUNK, SAMPLER_NAMES, SHEET_CHUNK
from library.generation.prompt_lines import PromptOptions
from library.generation.record import GenerationRecord, record_from_json

_SETTING = re.compile(r'\s*(\w[\w /-]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LEAST_SETTINGS = 3  # of a last line that is no part of a prompt
NETWORK_WORDS = re.compile(r"\s*<(?:lora|lyco|hypernet):[^:<>]+:[^<>]+>")
"""How AUTOMATIC1111 has networks in prompts."""
_SCHEDULE = re.compile(r"(.+) (Karras|Exponential)")  # older texts name the sampler so
_TAKEN = {  # {title: what is made of it}
    **{"Steps": "steps", "Sampler": "sampler", "CFG scale": "scale", "Seed": "seeds", "Size": "width"},
    **{"Denoising strength": "strength", "Hires upscale": "width"},
}
_NO_SETTINGS = ("Model", "Model hash", "Lora hashes", "TI hashes", "Hashes", "Version")  # change nothing by themselves


def read_record(path: Path, option: str = "--from_png") -> GenerationRecord | None:
    """What draws the picture again; None if it was not drawn here.

    Raises:
        UserError: The file cannot be read as a picture, or its record is damaged.
    """
    text = _read_chunks(path, option).get(RECORD_CHUNK)
    if text is None:
        return None
    try:
        return record_from_json(json.loads(text))
    except (ValueError, RecursionError):
        raise UserError(f"{option}: {path}: its text is damaged. Give the picture as it was saved.") from None
    except UserError as error:
        raise UserError(f"{option}: {path}: {error}. Give the picture as it was saved.") from None


def read_parameters(path: Path, option: str = "--from_png") -> PromptOptions:
    """What a picture of AUTOMATIC1111, or of a program that writes as it does, tells of itself. Not everything counts
    there: model and networks are left to the options.

    Raises:
        UserError: The file cannot be read as a picture, or tells nothing.
    """
    chunks = _read_chunks(path, option)
    if SHEET_CHUNK in chunks:
        raise UserError(
            f"{option}: {path} is a sheet of several pictures. Give one of them; {chunks[SHEET_CHUNK]} beside it names "
            "their files."
        )
    text = chunks.get(PARAMETERS_CHUNK)
    if text is None:
        raise UserError(f"{option}: {path} does not say how it was made. Give a PNG as it was saved, not a copy of it.")
    return parse_parameters(text)


def parse_parameters(text: str) -> PromptOptions:
    """Prompt and settings of a text as AUTOMATIC1111 writes it. Settings that are malformed, or out of bounds,
    count as not said."""
    lines, settings = _split(text)
    place = next((number for number, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), len(lines))
    prompt = NETWORK_WORDS.sub("", "\n".join(lines[:place])).strip()
    negative = "\n".join(lines[place:]).strip().removeprefix(NEGATIVE).strip()
    return PromptOptions(prompt, negative_prompt=negative or None, **_values(settings))


def left_out(path: Path, option: str = "--from_png") -> list[str]:
    """What a text of another program asks for and `read_parameters` does not take over.

    Raises:
        UserError: The file cannot be read as a picture.
    """
    return parts_left_out(_read_chunks(path, option).get(PARAMETERS_CHUNK, ""))


def parts_left_out(text: str) -> list[str]:
    """Networks and settings of a text that `parse_parameters` does not take over."""
    lines, settings = _split(text)
    values = _values(settings)
    lost = [
        f"{title}: {value}"
        for title, value in settings.items()
        if title not in _NO_SETTINGS and values.get(_TAKEN.get(title, "")) is None
    ]
    return [*(found[0].strip() for found in NETWORK_WORDS.finditer("\n".join(lines))), *lost]


def _split(text: str) -> tuple[list[str], dict[str, str]]:
    """The lines of the prompts, and {title: value} of the last line."""
    *lines, last = text.strip().split("\n")
    settings = {title: _unquoted(value) for title, value in _SETTING.findall(last)}
    if len(settings) < _LEAST_SETTINGS:
        return [*lines, last], {}
    if found := _SCHEDULE.fullmatch(settings.get("Sampler", "")):
        settings |= {"Sampler": found[1], "Schedule type": found[2]}
    return lines, settings


def _values(settings: Mapping[str, str]) -> dict[str, Any]:
    """What the settings ask for, under the names of `PromptOptions`."""
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", settings.get("Size", ""))
    seed = _whole(settings.get("Seed", ""))
    larger = _number(settings.get("Hires upscale", "")) or 1.0  # of a second pass, whose size is that of the picture
    steps, strength = _whole(settings.get("Steps", "")), _number(settings.get("Denoising strength", ""))
    has_size = size is not None and int(size[1]) > 0 and int(size[2]) > 0
    return {
        "steps": steps if steps is not None and 1 <= steps <= MAX_STEPS else None,
        "sampler": SAMPLER_NAMES.get(settings.get("Sampler", "").lower()),
        "scale": _number(settings.get("CFG scale", "")),
        "seeds": None if seed is None else (seed,),
        "width": round(int(size[1]) * larger) if size and has_size else None,
        "height": round(int(size[2]) * larger) if size and has_size else None,
        "strength": strength if strength is not None and 0 <= strength <= 1 else None,
    }


def _unquoted(value: str) -> str:
    value = value.strip()
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?", text) else None


def _read_chunks(path: Path, option: str) -> dict[str, str]:
    """{keyword: text} of a PNG."""
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        raise UserError(f"{option}: {path} is a folder. Give one PNG file.")
    try:
        with Image.open(path) as picture:
            picture.load()  # chunks may stand behind the pixels
            chunks = dict(getattr(picture, "text", {}))
    except FileNotFoundError:
        raise UserError(f"{option}: {path} does not exist. Check the path.") from None
    except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError(f"{option}: {path} is no picture that can be read. Give a PNG as it was saved.") from None
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read ({error.strerror or error}).") from None
    return {str(keyword): str(text) for keyword, text in chunks.items()}
