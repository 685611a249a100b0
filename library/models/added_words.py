"""Words that stand for vectors of their own: how a tokenizer and a text encoder come to know them.

    add_words(tokenizers, encoders, "blarg", read_embedding(path, "--textual_inversion_embeddings"))

The word then stands for all of its vectors, wherever it is in a text, without regard to upper and lower case. The
encoder's own table of tokens is not copied, and stays as it is: the vectors are rows behind it. An encoder that has no
vectors of the word passes over it, as ComfyUI does.

Source: Gal et al. 2022, arXiv:2208.01618.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from library.errors import CheckpointError
from library.models.word_places import word_pattern
from library.records import ONLY_VECTORS

if TYPE_CHECKING:
    from torch import Tensor

    from library.models.tokenizers import TextTokenizer
    from library.models.vocabulary import Vocabulary


def add_words(
    tokenizers: dict[str, TextTokenizer],
    encoders: Mapping[str, nn.Module],
    word: str,
    vectors: Mapping[str, Tensor],
    *,
    what: str = "the embedding",
) -> None:
    """Let tokenizers and encoders know a word.

    Args:
        tokenizers: {encoder: tokenizer}; those of all encoders that read texts. The entries are replaced.
        encoders: {encoder: CLIP or T5 of transformers}; of those with vectors the embedding is replaced.
        word: Without blanks.
        vectors: {encoder: [n, D]}; or {"emb_params": [n, D]} for the only encoder. A parameter is not copied, so it
            can be trained.
        what: What the vectors come from, for messages.

    Raises:
        CheckpointError: The vectors are of another model.
    """
    fitting = vectors_for(vectors, {name: token_table(encoder) for name, encoder in encoders.items()}, what)
    ids = {name: add_rows(encoders[name], rows, tokenizers[name].end) for name, rows in fitting.items()}
    for name, tokenizer in tokenizers.items():
        tokenizers[name] = with_word(tokenizer, word, ids.get(name, ()))


def vectors_for(vectors: Mapping[str, Tensor], tables: Mapping[str, Any], what: str) -> dict[str, Tensor]:
    """{encoder: [n, D]} of the encoders that are there.

    Args:
        vectors: As a file has them.
        tables: {encoder: its embedding of tokens}, with `embedding_dim`.
        what: What the vectors come from, for messages.

    Raises:
        CheckpointError: The vectors are of another model.
    """
    named = (
        {next(iter(tables)): vectors[ONLY_VECTORS]} if ONLY_VECTORS in vectors and len(tables) == 1 else dict(vectors)
    )
    found = {name: rows for name, rows in named.items() if name in tables}
    widths = {name: table.embedding_dim for name, table in tables.items()}
    if not found or any(rows.shape[-1] != widths[name] for name, rows in found.items()):
        has = ", ".join(f"{name} {rows.shape[-1]}" for name, rows in vectors.items())
        wants = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise CheckpointError(
            f"{what} is of another model: its vectors have widths {has}, and the text encoders here read {wants}."
        )
    return found


def token_table(encoder: nn.Module) -> Any:
    """The embedding of a text encoder's tokens."""
    model: Any = encoder
    return model.get_input_embeddings()


class WordTable(nn.Module):
    """An embedding of tokens with rows behind those that it had.

    Args:
        table: An embedding, or one of these.
        rows: Of the new ids. Shape [n, D].
    """

    def __init__(self, table: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.table = table
        if isinstance(rows, nn.Parameter):
            self.rows = rows
        else:
            self.register_buffer("rows", rows)

    @property
    def first(self) -> int:
        """The first new id."""
        first: Any = self.table.num_embeddings
        return int(first)

    @property
    def num_embeddings(self) -> int:
        """All rows."""
        return self.first + len(self.rows)

    @property
    def embedding_dim(self) -> int:
        """Width of a row."""
        return int(self.rows.shape[-1])

    @property
    def weight(self) -> Tensor:
        """Of the table that is not ours."""
        weight: Tensor = self.table.weight  # type: ignore[assignment]
        return weight

    def forward(self, ids: Tensor) -> Tensor:
        is_new = ids >= self.first
        known = self.table(ids.masked_fill(is_new, 0))
        new = F.embedding((ids - self.first).clamp(min=0), self.rows)
        return torch.where(is_new[..., None], new.to(known), known)  # [B, L, D]


def add_rows(encoder: nn.Module, rows: Tensor, end: int) -> tuple[int, ...]:
    """Put rows behind an encoder's table of tokens; returns their ids.

    Args:
        encoder: CLIP or T5 of transformers.
        rows: A parameter is taken as it is, others go to the encoder's device. Shape [n, D].
        end: Id of the end token. CLIP takes its pooled vector there; by default it looks for the highest id, which is
            no longer that of the end.
    """
    model: Any = encoder
    table = token_table(encoder)
    own = rows if isinstance(rows, nn.Parameter) else rows.detach().to(table.weight)
    wider = WordTable(table, own)
    model.set_input_embeddings(wider)
    if hasattr(model, "text_model"):
        model.text_model.eos_token_id = model.config.eos_token_id = end
    return tuple(range(wider.first, wider.num_embeddings))


# Tokenizers


def with_word(tokenizer: TextTokenizer, word: str, ids: Sequence[int]) -> TextTokenizer:
    """The same tokenizer, for which a word is these ids: any number of them, or none."""
    return replace(tokenizer, vocabulary=_with_word(tokenizer.vocabulary, word, tuple(ids)))


class _Piece(NamedTuple):
    """Of a caption: the word itself, or the text between two of them."""

    text: str
    start: int
    is_word: bool


def _with_word(known: Vocabulary, word: str, ids: tuple[int, ...]) -> Vocabulary:
    pattern = word_pattern(word)

    def encode(caption: str) -> list[int]:
        if not pattern.search(caption):
            return known.encode(caption)
        return [
            index
            for piece in _pieces(pattern, caption)
            for index in (ids if piece.is_word else known.encode(piece.text))
        ]

    own = {f"{word}{'' if number == 0 else f'_{number}'}": index for number, index in enumerate(ids)}
    return replace(known, ids={**known.ids, **own}, encode=encode, start_of=_places(known, pattern, ids))


def _places(known: Vocabulary, pattern: re.Pattern[str], ids: tuple[int, ...]) -> Callable[[str, int], int | None]:
    def start_of(caption: str, number: int) -> int | None:
        if not pattern.search(caption):
            return known.start_of(caption, number)
        for piece in _pieces(pattern, caption):
            if piece.is_word:
                if number < len(ids):
                    return piece.start
                number -= len(ids)
                continue
            inside = known.start_of(piece.text, number)
            if inside is not None:
                return piece.start + inside
            number -= len(known.encode(piece.text))
        return None

    return start_of


def _pieces(pattern: re.Pattern[str], caption: str) -> Iterator[_Piece]:
    """In their order; blanks around the word belong to nothing."""
    end = 0
    for match in [*pattern.finditer(caption), None]:
        text = caption[end : match.start() if match else len(caption)]
        if stripped := text.strip():
            yield _Piece(stripped, end + text.index(stripped), False)
        if match:
            yield _Piece(match.group(), match.start(), True)
            end = match.end()
