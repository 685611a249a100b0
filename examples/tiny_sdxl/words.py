"""Captions that leave something open."""

from __future__ import annotations


def without_colour(caption: str, colour: str) -> str:
    """Such as: a green square on a black background, without its first word of that colour."""
    return caption.replace(f"{colour} ", "", 1)
