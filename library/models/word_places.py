"""Where a learned word is in a text. A word is never part of another one: "tok" is not in "token" or "tok2"."""

from __future__ import annotations

import re
from functools import lru_cache

_BEFORE, _BEHIND = r"(?<![0-9A-Za-z_])", r"(?![0-9A-Za-z_])"  # other scripts do not part words by blanks


@lru_cache
def word_pattern(word: str) -> re.Pattern[str]:
    """Finds a word in texts, in upper or lower case."""
    return re.compile(f"{_BEFORE}{re.escape(word)}{_BEHIND}", re.IGNORECASE)


def has_word(text: str, word: str) -> bool:
    """Whether a word is in a text."""
    return word_pattern(word).search(text) is not None
