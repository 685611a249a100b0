"""Tags in one text, "1girl, smile, outdoors", as lists and back."""

from __future__ import annotations

from collections.abc import Iterable

from library.data.files.text_files import text_lines

SEPARATOR = ", "


def split_tags(text: str) -> list[str]:
    """The tags of a text. Commas and line breaks separate them; empty ones are left out."""
    parts = (part.strip() for line in text_lines(text) for part in line.split(","))
    return [part for part in parts if part]


def join_tags(tags: Iterable[str]) -> str:
    """The tags as one text."""
    return SEPARATOR.join(tags)


def has_wildcards(text: str) -> bool:
    """Whether commas may be inside of a choice, {a, b|c, b}, so that what looks like a tag is only a part of one."""
    return "{" in text or "}" in text


def normal_tags(text: str) -> str:
    """The tags with ", " between them, each once, in their order. With wildcards none is dropped."""
    tags = split_tags(text)
    return join_tags(tags if has_wildcards(text) else dict.fromkeys(tags))
