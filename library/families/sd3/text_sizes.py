"""How long captions are for SD3's three encoders, and how much room their outputs take. From headers and words only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from library.families.caption_counts import count_tokens
from library.models.tokenizers import CLIP_LENGTH

if TYPE_CHECKING:
    from library.families.sd3.checkpoint import Sd3Files
    from library.models.tokenizers import TextTokenizer


def text_limit(encoder: str, t5_length: int) -> int:
    """How many tokens an encoder reads of a caption, begin and end included."""
    return t5_length if encoder == "t5xxl" else CLIP_LENGTH


def caption_lengths(
    tokenizers: Mapping[str, TextTokenizer], captions: Sequence[str], *, t5_length: int
) -> dict[str, tuple[list[int], int]]:
    """{encoder: (tokens of each caption with begin and end, how many it reads)}. Encoders of equal words count once."""
    counts = count_tokens(tokenizers, captions, lambda own, caption: own.token_count(caption))
    return {name: (numbers, tokenizers[name].length or t5_length) for name, numbers in counts.items()}


def caption_cuts(tokenizers: Mapping[str, TextTokenizer], caption: str, *, t5_length: int) -> dict[str, int]:
    """{encoder: index of the first character that it does not read}, of encoders the caption is too long for."""
    found = {name: tokenizer.cut_at(caption, tokenizer.length or t5_length) for name, tokenizer in tokenizers.items()}
    return {name: index for name, index in found.items() if index is not None}


def text_state_bytes(
    files: Sd3Files,
    names: Iterable[str],
    lengths: Sequence[Mapping[str, int]],
    *,
    t5_length: int,
    masked: Iterable[str],
    element_bytes: int,
) -> int:
    """Bytes of the outputs of some encoders for some captions, without file headers.

    Args:
        files: The headers of the model.
        names: Encoders; those that are in no file take nothing.
        lengths: For each caption its tokens by encoder; an encoder that is not in it counts in full.
        t5_length: Tokens that T5 reads.
        masked: Encoders whose padding becomes zero, which is not stored.
        element_bytes: Of one number.
    """
    from library.families.sd3.parts import clip_width

    total = 0
    for name in names:
        part = {"clip_l": files.clip_l, "clip_g": files.clip_g, "t5xxl": files.t5xxl}[name]
        if part is None:
            continue
        width = files.config.context_dim if name == "t5xxl" else clip_width(part)
        limit = text_limit(name, t5_length)
        is_masked = name in tuple(masked)
        rows = sum(min(each.get(name, limit), limit) if is_masked else limit for each in lengths)
        num_pooled = 0 if name == "t5xxl" else len(lengths)
        total += (rows + num_pooled) * width * element_bytes
    return total
