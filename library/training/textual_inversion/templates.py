"""Sentences that stand in for captions: what a thing, or a style, is seen in. {} is the place of the word."""

from __future__ import annotations

from collections.abc import Sequence

OBJECTS = (
    "a photo of {}",
    "a picture of {}",
    "a clear photo of {}",
    "{} in the middle of the picture",
    "a close look at {}",
    "a photo that shows {}",
    "{} seen from the front",
    "{} seen from the side",
    "{} by daylight",
    "{} in soft light",
    "an evening photo of {}",
    "a snapshot of {}",
    "a small picture of {}",
    "a sharp photo of {}",
    "{} before a plain background",
    "here is {}",
    "a studio photo of {}",
    "a colourful picture of {}",
    "one more photo of {}",
    "a simple drawing of {}",
    "a photo of {} at home",
    "a photo of {} outdoors",
    "the {} in this picture",
    "a good view of {}",
)
STYLES = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "a landscape in the style of {}",
    "a portrait in the style of {}",
    "a scene in the style of {}",
    "{} style",
    "a small work in {} style",
    "a large work in {} style",
    "an interior as {} would show it",
    "a street as {} would show it",
    "the colours of {}",
    "a quiet picture, by {}",
    "a lively picture, by {}",
    "a detailed work by {}",
    "a rough sketch by {}",
    "art by {}",
    "a poster made by {}",
    "a still life after {}",
    "a night scene after {}",
)


def sentences(word: str, *, is_style: bool) -> Sequence[str]:
    """All of one kind, with the word in its place."""
    return tuple(sentence.format(word) for sentence in (STYLES if is_style else OBJECTS))
