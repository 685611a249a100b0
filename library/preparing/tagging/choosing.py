"""From scores to tags in their order. Pure functions of a table of tags and of rules.

Every tag is worked on once, before any picture: underscores, parts of character names, replacements, and what is not
wanted. A rating and a quality have no threshold, the likeliest one is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from library.preparing.tagging.labels import Label
from library.preparing.tagging.replacing import spelling, without_underscores

Place = Literal["nowhere", "first", "last"]

_BRACKETS = re.compile(r"[()]")
_OF_ONE = ("rating", "quality")  # categories of which the likeliest tag is taken


@dataclass(frozen=True)
class TagRules:
    """What becomes of scores.

    Attributes:
        thresholds: Least score by category; categories without one give no tags by their score.
        rating: Where the likeliest rating goes.
        quality: Where the likeliest quality goes.
        are_characters_first: Names of characters come before other tags.
        are_characters_expanded: "name_(series)" becomes two tags.
        are_underscores_removed: But for those of faces.
        replacements: {spelling of a tag: other words}.
        undesired: Tags that are left out.
        always_first: Tags that come before all others where a picture has them, in this order: as they are written, or
            else as the model calls them, which means all that is written for it.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    rating: Place = "nowhere"
    quality: Place = "nowhere"
    are_characters_first: bool = False
    are_characters_expanded: bool = False
    are_underscores_removed: bool = False
    replacements: Mapping[str, str] = field(default_factory=dict)
    undesired: tuple[str, ...] = ()
    always_first: tuple[str, ...] = ()


class ScoredTag(NamedTuple):
    """A tag as it is written, and how sure the model is, 0-1."""

    text: str
    score: float


class TagChooser:
    """Chooses the tags of pictures.

    Args:
        labels: What the scores are about.
        rules: What becomes of them.
    """

    def __init__(self, labels: Sequence[Label], rules: TagRules) -> None:
        self._rules = rules
        self._labels = labels
        self._words = [tuple(_words_of(label, rules)) for label in labels]
        self._leading = {name: self._spellings(name) for name in rules.always_first}
        limits = [np.inf if label.category in _OF_ONE else rules.thresholds[label.category] for label in labels]
        self._limits = np.array(limits, np.float32)
        self._of = {name: np.array([i for i, label in enumerate(labels) if label.category == name]) for name in _OF_ONE}

    def choose(self, scores: np.ndarray) -> list[ScoredTag]:
        """The tags of a picture, in the order in which they are written; none is there twice.

        Args:
            scores: In 0-1. Shape [number of labels].
        """
        rules = self._rules
        chosen = [int(index) for index in np.flatnonzero(scores >= self._limits)]
        if rules.are_characters_first:
            chosen.sort(key=lambda index: self._labels[index].category != "character")  # the order within stays
        rating, quality = self._likeliest("rating", scores), self._likeliest("quality", scores)
        first = [*(rating if rules.rating == "first" else ()), *(quality if rules.quality == "first" else ())]
        last = [*(quality if rules.quality == "last" else ()), *(rating if rules.rating == "last" else ())]
        tags: dict[str, ScoredTag] = {}
        for index in (*first, *chosen, *last):
            for word in self._words[index]:
                tags.setdefault(spelling(word), ScoredTag(word, float(scores[index])))
        leading = (key for keys in self._leading.values() for key in keys if key in tags)
        return [tags[key] for key in dict.fromkeys((*leading, *tags))]

    def _spellings(self, name: str) -> tuple[str, ...]:
        """Of a tag as it is written; of one that is written otherwise, all that stands for it."""
        if any(spelling(word) == spelling(name) for words in self._words for word in words):
            return (spelling(name),)
        return tuple(spelling(word) for label in self._labels for word in _words_of(label, self._rules, called=name))

    def _likeliest(self, category: str, scores: np.ndarray) -> list[int]:
        indices = self._of[category]
        return [int(indices[np.argmax(scores[indices])])] if len(indices) else []

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of some tags that no picture can be given, before or after replacements."""
        words = (
            word for label in self._labels for pair in _renamed(label, self._rules) for word in (label.name, pair[1])
        )
        known = set(map(spelling, words))
        return [name for name in names if spelling(name) not in known]

    def never_first(self) -> list[str]:
        """Those that shall come first and are never written, in no words."""
        return [name for name, keys in self._leading.items() if not keys]

    def never_replaced(self) -> list[str]:
        """The tags of replacements that the model never gives. What stands for another tag is not replaced again."""
        known = {spelling(part) for label in self._labels for part, _ in _renamed(label, self._rules)}
        return [name for name in self._rules.replacements if name not in known]

    def holding(self, separator: str) -> list[str]:
        """The tags of the model that hold a text which is meant to stand between tags."""
        words = (word for words in self._words for word in words if separator in word)
        return [word for word in words if word not in self._rules.replacements.values()]

    def replacing_with(self, separator: str) -> list[str]:
        """The tags that stand for others and hold such a text."""
        words = (word for words in self._words for word in words if separator in word)
        return list(dict.fromkeys(word for word in words if word in self._rules.replacements.values()))


def _words_of(label: Label, rules: TagRules, *, called: str | None = None) -> Iterator[str]:
    """What is written for a label: one tag, two, or none; if `called` is given, for what the model calls so."""
    undesired = {spelling(tag) for tag in rules.undesired}
    if {"rating": rules.rating, "quality": rules.quality}.get(label.category) == "nowhere":
        return
    if spelling(label.name) in undesired and spelling(label.name) not in rules.replacements:
        return
    for part, word in _renamed(label, rules):
        is_meant = called is None or spelling(called) in (spelling(label.name), spelling(part))
        if is_meant and spelling(word) not in undesired:
            yield word


def _renamed(label: Label, rules: TagRules) -> Iterator[tuple[str, str]]:
    """(name or part of it, word for it) after all but leaving out. A name that has a replacement is not taken apart."""
    is_whole = spelling(label.name) in rules.replacements or not rules.are_characters_expanded
    parts = (label.name,) if is_whole or label.category != "character" else expanded(label.name)
    for part in parts:
        word = without_underscores(part) if rules.are_underscores_removed else part
        yield part, rules.replacements.get(spelling(part), word)


def expanded(name: str) -> tuple[str, ...]:
    """Name and series of "name_(series)"; of several brackets the last one is the series. Others stay whole."""
    if not name.endswith(")"):
        return (name,)
    depth = 0
    for bracket in reversed(list(_BRACKETS.finditer(name))):
        depth += 1 if bracket[0] == ")" else -1
        if depth == 0:
            person, series = name[: bracket.start()].rstrip("_ "), name[bracket.end() : -1].strip("_ ")
            return (person, series) if person and series else (name,)
    return (name,)


def split_tags(text: str, separator: str) -> list[str]:
    """The tags of a text. Blanks around the separator and around tags do not count.

    Args:
        text: One line.
        separator: What stands between tags when they are written.
    """
    parts = text.split(separator.strip() or separator)
    return [part.strip() for part in parts if part.strip()]


def appended(text: str, tags: Iterable[str], separator: str) -> str:
    """Tags behind those of a text; none that is there already, with underscores or spaces.

    Args:
        text: One line, or nothing.
        tags: To be added.
        separator: What stands between tags.
    """
    there = split_tags(text, separator)
    known = {spelling(tag) for tag in there}
    new = [tag for tag in tags if spelling(tag) not in known]
    return separator.join([*there, *new]) if new else text.strip()
