"""From what a model says to the line of a caption file: pure functions of texts."""

from __future__ import annotations

import re

# What Git believes to be written: in quotes or a few words, and where ("on it", "on his shirt"; not "on the wall of").
_PLACE = (
    r"(?: (?:is |are )?(?:written )?(?:on|in|at|across) (?:it\b|them\b|(?:the|a|an|his|her|their|its) \w+\b(?! of\b)))"
)
_WORD = r"(?!(?:on|in|at|with|and|of|next|near|is|are)\b)\w+"
_SAID = rf"""(?:"[^"]*"|'[^']*'|{_WORD}(?: {_WORD}){{0,5}}){_PLACE}?"""
_WRITING = (
    re.compile(
        rf",? ?\b(?:has|with|and|featuring) (?:the|a) (?:words?|letters?|names?|numbers?) {_SAID}", re.IGNORECASE
    ),
    re.compile(rf"(?: with a sign)? that (?:says|reads) {_SAID}", re.IGNORECASE),
)


def finished_caption(text: str, *, trigger_word: str | None, postfix: str | None, separator: str) -> str:
    """One line: trigger word, what the model says, postfix; what is there already is not said twice.

    Args:
        text: What the model says. Line breaks become blanks: a training reads one line.
        trigger_word: Comes first.
        postfix: Comes last.
        separator: Between them.
    """
    caption = " ".join(text.split())
    if trigger_word and not _begins_with(caption, trigger_word):
        caption = f"{trigger_word}{separator}{caption}"
    if postfix and not caption.casefold().endswith(postfix.casefold()):
        caption = f"{caption}{separator}{postfix}"
    return caption


def without_writing(text: str) -> str:
    """A caption without what the model believes to be written in the picture."""
    for pattern in _WRITING:
        text = pattern.sub("", text)
    return " ".join(text.split())


def _begins_with(caption: str, word: str) -> bool:
    """Whether the first words of a caption are these; "cats" does not begin with the word "cat"."""
    start, rest = caption[: len(word)], caption[len(word) :]
    return start.casefold() == word.casefold() and not (rest[:1].isalnum() or rest[:1] == "_")
