"""Files of prompts: UTF-8 text with a prompt a line; blank lines and lines that begin with # are passed over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from library.errors import OptionError
from library.rng import python_stream

_MAX_BYTES = 16 * 1024**2  # a larger file is something else
_Any = TypeVar("_Any")


class PromptLine(NamedTuple):
    """A line with a prompt and its options, and where it stands, for messages."""

    text: str
    place: str


def read_prompt_lines(path: Path, option: str = "--from_file") -> list[PromptLine]:
    """The prompts of a file, at least one.

    Raises:
        OptionError: The file is missing, cannot be read, is no text, or has no prompt.
    """
    text = _read_text(path, option)
    lines = [
        PromptLine(line.strip(), f"{path} line {number}")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise OptionError(f"{option}: {path} has no prompt. Write one prompt a line, without a # before it.")
    return lines


def shuffled(lines: Sequence[_Any], *, seed: int, iteration: int = 0) -> list[_Any]:
    """The lines in another order, the same one for the same seed and iteration."""
    order = list(lines)
    python_stream(seed, "prompt order", iteration).shuffle(order)
    return order


def _read_text(path: Path, option: str) -> str:
    if path.is_dir():
        raise OptionError(f"{option}: {path} is a folder. Give a text file with a prompt a line.")
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise OptionError(f"{option}: {path} does not exist. Check the path.") from None
    except OSError as error:
        raise OptionError(f"{option}: {path} cannot be read ({error.strerror or error}). Check its rights.") from None
    if len(content) > _MAX_BYTES:
        raise OptionError(f"{option}: {path} has more than {_MAX_BYTES:,} bytes. Give a text file of prompts.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{option}: {path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
