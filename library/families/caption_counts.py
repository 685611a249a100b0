"""Counting the tokens of many captions for several encoders, of which some have the same words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from library.models.tokenizers import TextTokenizer


def count_tokens(
    tokenizers: Mapping[str, TextTokenizer], captions: Sequence[str], count: Callable[[TextTokenizer, str], int]
) -> dict[str, list[int]]:
    """{encoder: tokens of each caption}. Equal captions, and encoders of equal words, are counted once.

    Args:
        tokenizers: By name of the encoder.
        captions: The texts.
        count: Tokens of one caption, begin and end included.
    """
    counted: dict[tuple[str, bool], list[int]] = {}
    numbers = {}
    for name, tokenizer in tokenizers.items():
        words = tokenizer.vocabulary.identity(), tokenizer.start is None
        if words not in counted:
            distinct = {caption: count(tokenizer, caption) for caption in dict.fromkeys(captions)}
            counted[words] = [distinct[caption] for caption in captions]
        numbers[name] = counted[words]
    return numbers
