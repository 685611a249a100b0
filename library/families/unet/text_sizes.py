"""How long captions are for the encoders of SD 1.x, 2.x and SDXL, and how much room their outputs take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from library.families.caption_counts import count_tokens
from library.models.token_chunks import INNER, RowTokenizer

if TYPE_CHECKING:
    from library.models.tokenizers import TextTokenizer

_POOLED = ("clip_g",)  # encoders whose vector is kept beside their states


def caption_lengths(
    tokenizers: Mapping[str, TextTokenizer], captions: Sequence[str], *, num_chunks: int, is_weighted: bool
) -> dict[str, tuple[list[int], int]]:
    """{encoder: (tokens of each caption with begin and end, how many it reads)}. Encoders of equal words count once.

    Brackets that weigh words are no tokens.
    """
    counts = count_tokens(
        tokenizers, captions, lambda own, caption: RowTokenizer(own, num_chunks, is_weighted).token_count(caption)
    )
    return {name: (numbers, num_chunks * INNER + 2) for name, numbers in counts.items()}


def caption_cuts(
    tokenizers: Mapping[str, TextTokenizer], caption: str, *, num_chunks: int, is_weighted: bool
) -> dict[str, int]:
    """{encoder: index of the first character that it does not read}, of encoders the caption is too long for."""
    found = {name: RowTokenizer(own, num_chunks, is_weighted).cut_at(caption) for name, own in tokenizers.items()}
    return {name: index for name, index in found.items() if index is not None}


def text_state_bytes(widths: Mapping[str, int], num_captions: int, *, num_chunks: int, element_bytes: int) -> int:
    """Bytes of the outputs of some encoders for some captions, without file headers. All captions take as much.

    Args:
        widths: Of each encoder's states.
        num_captions: How many.
        num_chunks: Rows of 77 tokens.
        element_bytes: Of one number.
    """
    rows = {name: num_chunks * INNER + 2 + (name in _POOLED) for name in widths}
    return num_captions * element_bytes * sum(rows[name] * width for name, width in widths.items())
