"""From what a model says to the line of a caption file: pure functions of texts."""

from __future__ import annotations

import re

# What Git believes to be written: in quotes or a few words, and where ("on it", "on the front of his shirt"; "on the
# wall of a house" belongs to the rest). Words with "and" among them are taken for such only before what bears writing.
_BEARERS = (
    r"(?:it|them|(?:the|a|his|her|their|its) (?:\w+ )?(?:cover|sign|label|poster|banner|shirt|t-shirt|hat|cap)s?)\b"
)
_SIDE = r"(?:the (?:front|back|side|top|bottom) of )?"
_THING = r"(?:it\b|them\b|(?:the|a|an|his|her|their|its) [\w-]+\b(?! of\b))"
_WRITTEN = r"(?: (?:is |are )?(?:written )?(?:on|in|at|across) "
_PLACE = rf"{_WRITTEN}{_SIDE}{_THING})"
_ANY = r"(?!(?:on|with|next|near|are)\b)[\w'&%!?-]+,?"
_WORD = r"(?!(?:and|on|in|at|with|of|next|near|is|are)\b)[\w'-]+"
_END = r"(?=[,.;]|$| and (?:a|an|the)\b)"  # else more of it follows, and the sentence would be torn
_SAID = (
    rf"""(?:{_ANY}(?: {_ANY}){{0,8}}?{_WRITTEN}{_SIDE}{_BEARERS})|"""
    rf"""(?:(?:"[^"]*"|'[^']*'){_PLACE}?)|"""
    rf"""(?:{_WORD}(?: {_WORD}){{0,5}}(?:{_PLACE}|{_END})))"""
)
_WRITING = (
    re.compile(
        rf",? ?\b(?:has|with|and|featuring) (?:the (?:words?|letters?|numbers?)|a number(?= \d)) (?:{_SAID})",
        re.IGNORECASE,
    ),
    re.compile(rf"(?: with a sign)? that (?:says|reads) (?:{_SAID})", re.IGNORECASE),
)

_CLOSING = re.compile(r" ([.,;:?!)])")
_OPENING = re.compile(r"\( ")
_APOSTROPHE = re.compile(r"(?<=\w) ' (?=(?:s|t|d|m|re|ve|ll)\b)")
_HYPHEN = re.compile(r"(?<=\w) - (?=\w)(?!(?:an?|the|in|on|of|at|with|two|three)\b)")
_QUOTES = tuple(re.compile(rf"(?<!\S){sign} ([^{sign}]+) {sign}(?!\S)") for sign in ('"', "'"))


def finished_caption(text: str, *, trigger_word: str | None, postfix: str | None, separator: str) -> str:
    """One line: trigger word, what the model says, postfix; what is there already is not said twice.

    Args:
        text: What the model says. Line breaks become blanks: a training reads one line.
        trigger_word: Comes first.
        postfix: Comes last; a full stop before it is left out, unless only a blank separates them.
        separator: Between them.
    """
    caption = " ".join(text.split())
    trigger_word, postfix = ((words or "").strip() for words in (trigger_word, postfix))
    if trigger_word and not _begins_with(caption, trigger_word):
        caption = f"{trigger_word}{separator}{caption}"
    if postfix and not _ends_with(caption, postfix):
        caption = f"{caption.removesuffix('.') if separator.strip() else caption}{separator}{postfix}"
    return caption


def without_writing(text: str) -> str:
    """A caption without what the model believes to be written in the picture."""
    for pattern in _WRITING:
        text = pattern.sub("", text)
    return " ".join(text.split())


def joined_pieces(text: str) -> str:
    """Words as they are written, of a tokenizer that makes words of their own of all signs: "man ' s t - shirt ."
    becomes "man's t-shirt."."""
    text = _HYPHEN.sub("-", _APOSTROPHE.sub("'", text))
    for sign, pattern in zip("\"'", _QUOTES, strict=True):
        text = pattern.sub(rf"{sign}\1{sign}", text)
    return _OPENING.sub("(", _CLOSING.sub(r"\1", text)).replace("s ' ", "s' ")


def _begins_with(caption: str, words: str) -> bool:
    """Whether a caption begins with these words; "cats" does not begin with the word "cat"."""
    rest = caption[len(words) :]
    return caption[: len(words)].casefold() == words.casefold() and not _is_of_word(rest[:1])


def _ends_with(caption: str, words: str) -> bool:
    """Whether a caption ends with these words, perhaps with a full stop; "cart" does not end with the word "art"."""
    return any(_has_at_end(text, words) for text in (caption, caption.removesuffix(".")))


def _has_at_end(text: str, words: str) -> bool:
    place = len(text) - len(words)
    if place < 0 or text[place:].casefold() != words.casefold():
        return False
    return place == 0 or not (_is_of_word(text[place - 1]) and _is_of_word(words[0]))


def _is_of_word(sign: str) -> bool:
    return sign.isalnum() or sign == "_"
