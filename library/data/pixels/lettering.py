"""Letters on pictures, in the font that Pillow brings along, which knows hardly more than ASCII."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

_GLYPH_SIZE = 13  # large enough for letters to differ


def drawable(text: str) -> str:
    """The text in letters that the font has: without accents, and with one ? for letters in a row that it lacks.

    Empty if nothing is left to read.
    """
    plain = [letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter)]
    shown = ""
    for letter in plain:
        if letter.isspace() or has_glyph(letter):
            shown += " " if letter.isspace() else letter
        elif not shown.endswith("?"):
            shown += "?"
    return shown.strip() if any(letter.isalnum() for letter in shown) else ""


@lru_cache(maxsize=4096)
def has_glyph(letter: str) -> bool:
    """Whether the font has the letter. All letters that it lacks look the same."""
    if not _has_outlines():
        return letter.isascii()
    return _drawn(letter) != _drawn("\ufffe")


@lru_cache(maxsize=16)
def font(size: int) -> Any:
    """The font in letters of about so many pixels, where Pillow can scale it."""
    from PIL import ImageFont

    return ImageFont.load_default(size) if _has_outlines() else ImageFont.load_default()


def _drawn(letter: str) -> tuple[Any, bytes]:
    mask = font(_GLYPH_SIZE).getmask(letter)
    return mask.size, bytes(mask)


def _has_outlines() -> bool:
    """Whether Pillow was built with the library for outlines; otherwise its font is made of dots."""
    from PIL import features

    return bool(features.check("freetype2"))
