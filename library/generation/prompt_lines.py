"""What a prompt and the options behind it ask for, as in "a cat --w 768 --h 512 --d 42 --s 28 --l 4.5 --n blurry".

Options begin with " --", in any letter case; what stands before the first one is the prompt. What a line does not say
is None, and the options of the command line decide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from library.errors import OptionError

_MAX_QUOTED = 80  # characters of a line in a message
_MAX_LIST = 10_000
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class PromptOptions:
    """The prompt of a line and what it asks for; None is not said.

    Attributes:
        seeds: Of the pictures of this prompt, one after the other.
        scale: Guidance scale.
        negative_scale: Guidance scale away from the empty prompt, beside that of the negative prompt; "none" switches
            it off.
        strength: Of image to image, 0 to 1.
        clip_prompt: Known of older scripts, and only noted.
        network_muls: Strength of each network; the last one counts for all further ones.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    original_width_negative: int | None = None
    original_height_negative: int | None = None
    crop_top: int | None = None
    crop_left: int | None = None
    steps: int | None = None
    seeds: tuple[int, ...] | None = None
    scale: float | None = None
    negative_scale: float | Literal["none"] | None = None
    strength: float | None = None
    clip_prompt: str | None = None
    network_muls: tuple[float, ...] | None = None
    ds_depth_1: int | None = None
    ds_timesteps_1: int | None = None
    ds_depth_2: int | None = None
    ds_timesteps_2: int | None = None
    ds_ratio: float | None = None
    gradual_latent_timesteps: int | None = None
    gradual_latent_ratio: float | None = None
    gradual_latent_ratio_step: float | None = None
    gradual_latent_every_n_steps: int | None = None
    gradual_latent_s_noise: float | None = None
    gradual_latent_unsharp_params: str | None = None
    file_name: str | None = None
    sampler: str | None = None


class _Form(NamedTuple):
    """How a value is written: what is wanted, in words, and how it is read; None if it is something else."""

    wanted: str
    read: Callable[[str], Any]


def _whole(text: str, least: int, most: int = _MAX_SEED) -> int | None:
    value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,19}", text) else None
    return value if value is not None and least <= value <= most else None


def _number(text: str, least: float = -math.inf, most: float = math.inf) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and least <= value <= most else None


def _listed(text: str, read: Callable[[str], Any]) -> tuple[Any, ...] | None:
    values = tuple(read(part.strip()) for part in text.split(","))
    return None if None in values or len(values) > _MAX_LIST else values


_SIDE = _Form("a whole number of 1 or more", lambda text: _whole(text, 1, 2**24))
_COUNT = _Form("a whole number of 0 or more", lambda text: _whole(text, 0, 2**24))
_STEPS = _Form("a whole number of 1 to 1000", lambda text: _whole(text, 1, 1000))
_SEEDS = _Form("whole numbers of 0 or more with commas", lambda text: _listed(text, lambda one: _whole(one, 0)))
_SCALE = _Form("a number", _number)
_SCALE_OR_NONE = _Form('a number or "none"', lambda text: "none" if text.lower() == "none" else _number(text))
_SHARE = _Form("a number of 0 to 1", lambda text: _number(text, 0, 1))
_PART = _Form("a number above 0 and up to 1", lambda text: _number(text, 1e-6, 1))
_FACTOR = _Form("a number of 0 or more", lambda text: _number(text, 0))
_POSITIVE = _Form("a number above 0", lambda text: _number(text, 1e-6))
_NUMBERS = _Form("numbers with commas", lambda text: _listed(text, _number))
_TIMESTEP = _Form("a timestep of 0 to 1000", lambda text: _whole(text, 0, 1000))
_TEXT = _Form("a text", lambda text: text or None)
_ANY_TEXT = _Form("a text", lambda text: text)  # an empty one is a negative prompt without words
_WORD = _Form("a name", lambda text: text.lower() if re.fullmatch(r"[A-Za-z0-9_+-]+", text) else None)

_OPTIONS: dict[str, tuple[str, _Form]] = {
    "w": ("width", _SIDE),
    "h": ("height", _SIDE),
    "ow": ("original_width", _SIDE),
    "oh": ("original_height", _SIDE),
    "nw": ("original_width_negative", _SIDE),
    "nh": ("original_height_negative", _SIDE),
    "ct": ("crop_top", _COUNT),
    "cl": ("crop_left", _COUNT),
    "s": ("steps", _STEPS),
    "d": ("seeds", _SEEDS),
    "l": ("scale", _SCALE),
    "nl": ("negative_scale", _SCALE_OR_NONE),
    "t": ("strength", _SHARE),
    "n": ("negative_prompt", _ANY_TEXT),
    "c": ("clip_prompt", _TEXT),
    "am": ("network_muls", _NUMBERS),
    "dsd1": ("ds_depth_1", _SIDE),
    "dst1": ("ds_timesteps_1", _TIMESTEP),
    "dsd2": ("ds_depth_2", _SIDE),
    "dst2": ("ds_timesteps_2", _TIMESTEP),
    "dsr": ("ds_ratio", _PART),
    "glt": ("gradual_latent_timesteps", _TIMESTEP),
    "glr": ("gradual_latent_ratio", _PART),
    "gle": ("gradual_latent_every_n_steps", _STEPS),
    "gls": ("gradual_latent_ratio_step", _POSITIVE),
    "glsn": ("gradual_latent_s_noise", _FACTOR),
    "glus": ("gradual_latent_unsharp_params", _TEXT),
    "f": ("file_name", _TEXT),
    "ss": ("sampler", _WORD),
}
LINE_OPTIONS = {f"--{letters}": setting for letters, (setting, _) in _OPTIONS.items()}
"""{option of a line: setting}"""
_SPELLINGS = {setting: letters for letters, (setting, _) in _OPTIONS.items()} | {
    letters: letters for letters in _OPTIONS
}


def parse_prompt(line: str, place: str = "--prompt") -> PromptOptions:
    """Split a line into the prompt and what its options ask for.

    Args:
        line: As written. With a blank before its first option and nothing before that, the prompt has no words.
        place: Where the line comes from, for messages: "prompts.txt line 3".

    Raises:
        OptionError: An option is unknown, given twice, or its value is of another form.
    """
    prompt, *pieces = line.rstrip("\r\n").split(" --")
    _refuse_hidden_option(prompt, place)
    settings: dict[str, Any] = {}
    for piece in pieces:
        setting, value = _read_option(piece, place)
        if setting in settings:
            raise OptionError(f"{place}: --{piece.split()[0]} is given twice. Keep one of them.")
        settings[setting] = value
    return PromptOptions(prompt.strip(), **settings)


def shortened(text: str, length: int = _MAX_QUOTED) -> str:
    """The text in one line of at most `length` characters."""
    text = " ".join(text[: 4 * length].split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _read_option(piece: str, place: str) -> tuple[str, Any]:
    """(setting, value) of one option, given without its two dashes."""
    letters, _, text = piece.strip().partition(" ")
    known = _OPTIONS.get(letters.lower())
    if known is None:
        near = get_close_matches(letters.lower(), _SPELLINGS, n=1, cutoff=0.5)
        advice = f"Did you mean --{_SPELLINGS[near[0]]}?" if near else f"Known are {', '.join(LINE_OPTIONS)}."
        raise OptionError(f"{place}: --{shortened(letters) or ' '} is no option of a prompt. {advice}")
    setting, form = known
    value = form.read(text.strip())
    if value is None:
        got = f'"{shortened(text)}"' if text.strip() else "nothing"
        raise OptionError(f"{place}: --{letters} needs {form.wanted}, got {got}.")
    return setting, value


def _refuse_hidden_option(prompt: str, place: str) -> None:
    """Refuse what looks like an option and would be drawn as part of the prompt."""
    found = re.search(rf"(^|\S)--({'|'.join(_OPTIONS)})\s+\S+", prompt, re.IGNORECASE)
    if found is None:
        return
    option = shortened(found.group(0).lstrip())
    if found.group(1):
        raise OptionError(f'{place}: "{option}" would be part of the prompt. Put a blank before the option.')
    raise OptionError(f'{place}: begins with the option "{option}". Write the prompt first, or a blank for none.')
