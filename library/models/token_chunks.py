"""Captions of up to 75, 150 or 225 tokens for a CLIP that reads 77: row after row, each with a begin and an end.

A row is the begin, up to 75 tokens of the caption, the end, and padding; a row that nothing is left for has begin and
end only. Rows are always 77 long, whatever a tokenizer's folder says: that is what these models were trained with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from library.models.tokenizers import CLIP_LENGTH, TextTokenizer
from library.models.weighted_prompts import phrases

INNER = CLIP_LENGTH - 2  # tokens of a caption in a row


class Rows(NamedTuple):
    """A caption as an encoder reads it, in numbers for each token of all rows, one row after the other.

    Attributes:
        ids: Of tokens.
        mask: 1 up to the end token of a row, 0 for the padding behind it.
        weights: Factors on what the encoder says of them.
    """

    ids: list[int]
    mask: list[int]
    weights: list[float]


@dataclass(frozen=True)
class RowTokenizer:
    """The tokenizer of a CLIP, for captions of several rows.

    Attributes:
        tokenizer: Of one row.
        num_chunks: Rows.
        is_weighted: Brackets weigh words, see weighted_prompts.py; otherwise they are words.
    """

    tokenizer: TextTokenizer
    num_chunks: int = 1
    is_weighted: bool = False

    @property
    def length(self) -> int:
        """Tokens that are read of a caption, with one begin and one end."""
        return self.num_chunks * INNER + 2

    def encode(self, caption: str) -> Rows:
        """All rows; a longer caption is cut."""
        words = list(islice(self._words(caption), self.num_chunks * INNER))
        rows = [self._row(words[INNER * number :][:INNER]) for number in range(self.num_chunks)]
        return Rows(
            [index for row in rows for index in row.ids],
            [mark for row in rows for mark in row.mask],
            [weight for row in rows for weight in row.weights],
        )

    def token_count(self, caption: str) -> int:
        """Number of tokens of the whole caption, with one begin and one end."""
        return sum(1 for _ in self._words(caption)) + 2

    def cut_at(self, caption: str) -> int | None:
        """Index of the first character that is not read; None where all are."""
        room, encoder = self.length - 2, self.tokenizer.vocabulary
        if not self.is_weighted:
            return encoder.start_of(caption, room)
        for phrase in phrases(caption):
            start = encoder.start_of(phrase.text, room)
            if start is not None:
                return phrase.places[start]
            room -= len(encoder.encode(phrase.text))
        return None

    def _row(self, words: list[tuple[int, float]]) -> Rows:
        own, start = self.tokenizer, self.tokenizer.start
        assert start is not None  # of a CLIP
        num_used, num_padding = len(words) + 2, INNER - len(words)
        ids = [start, *(index for index, _ in words), own.end, *[own.pad] * num_padding]
        weights = [1.0, *(weight for _, weight in words), *[1.0] * (1 + num_padding)]
        return Rows(ids, [1] * num_used + [0] * num_padding, weights)

    def _words(self, caption: str) -> Iterator[tuple[int, float]]:
        """(id, weight) of each token. Phrases are read one by one: no token reaches over a change of weight."""
        encode = self.tokenizer.vocabulary.encode
        if not self.is_weighted:
            yield from ((index, 1.0) for index in encode(caption))
            return
        for phrase in phrases(caption):
            yield from ((index, phrase.weight) for index in encode(phrase.text))
