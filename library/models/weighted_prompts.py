r"""Weights inside captions: `(x)` is x a tenth stronger, `[x]` as much weaker, `(x:1.3)` is x times 1.3; they nest.

A backslash before a bracket or a backslash means the character itself; any other backslash vanishes. A bracket that is
never closed counts to the end; one that was never opened is text, and so is a number without round bracket before it.

Source: the syntax of prompts that image generators have in common.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

STRONGER = 1.1
_FACTORS = {"(": STRONGER, "[": 1 / STRONGER}
_CLOSED_BY = {")": "(", "]": "["}
_PIECES = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)"
    r"|(?P<opening>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*\)"
    r"|(?P<closing>[)\]])"
    r"|[^\\()\[\]:]+|:"
)


class Phrase(NamedTuple):
    """A part of a caption whose words weigh the same.

    Attributes:
        text: Without what is syntax.
        weight: Factor; 1 where nothing is said.
        places: Index in the caption of each character.
    """

    text: str
    weight: float
    places: tuple[int, ...]


def phrases(caption: str) -> list[Phrase]:
    """The parts of a caption, in its order; neighbours differ in weight."""
    reader = _Reader()
    for match in _PIECES.finditer(caption):
        reader.read(match)
    return reader.phrases()


def has_open_bracket(caption: str) -> bool:
    """Whether a bracket is never closed, and so counts to the end."""
    reader = _Reader()
    for match in _PIECES.finditer(caption):
        reader.read(match)
    return reader.is_open


class _Reader:
    """What has been read: pieces of text, where they begin, what they weigh; and the brackets that are open."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._starts: list[int] = []
        self._weights: list[float] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}  # pieces that were read before each

    def read(self, match: re.Match[str]) -> None:
        """The next piece."""
        escaped, opening, weight, closing = match.group("escaped", "opening", "weight", "closing")
        bracket = "(" if weight is not None else _CLOSED_BY.get(closing or "")
        if escaped is not None:
            self._add(escaped, match.start() + 1)
        elif opening is not None:
            self._open[opening].append(len(self._texts))
        elif bracket is not None and self._open[bracket]:
            self._weigh(self._open[bracket].pop(), _FACTORS[bracket] if weight is None else float(weight))
        else:
            self._add(match.group(), match.start())

    @property
    def is_open(self) -> bool:
        """Whether a bracket waits to be closed."""
        return any(self._open.values())

    def phrases(self) -> list[Phrase]:
        """All of it, with the brackets that are still open closed at the end."""
        for bracket, pieces in self._open.items():
            for piece in pieces:
                self._weigh(piece, _FACTORS[bracket])
            pieces.clear()
        found = []
        for weight, group in groupby(range(len(self._texts)), key=self._weights.__getitem__):
            pieces = list(group)
            places = [place for piece in pieces for place in self._places(piece)]
            found.append(Phrase("".join(self._texts[piece] for piece in pieces), weight, tuple(places)))
        return found

    def _add(self, text: str, start: int) -> None:
        if text:
            self._texts.append(text)
            self._starts.append(start)
            self._weights.append(1.0)

    def _weigh(self, first: int, factor: float) -> None:
        self._weights[first:] = [weight * factor for weight in self._weights[first:]]

    def _places(self, piece: int) -> range:
        start = self._starts[piece]
        return range(start, start + len(self._texts[piece]))
