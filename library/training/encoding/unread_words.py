"""Texts that are longer than every text encoder reads: what is behind is neither learned nor drawn, and is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from library.data.plan.captions import fixed_caption
from library.data.problems import counted
from library.log import get_logger

if TYPE_CHECKING:
    from library.families.base import ModelFamily
    from library.training.encoding.encoding_setup import EncodingSetup
    from library.training.planning import DataPlan

logger = get_logger(__name__)

_LENGTHS = (150, 225)  # of --max_token_length, beside the 75 tokens of one row
_ENDS = 2  # begin and end, which a length counts and --max_token_length does not
_MAX_QUOTED = 60  # characters


def captions_of(plan: DataPlan) -> list[str]:
    """The different captions of a plan as they are without chance; not those whose length is drawn."""
    rules = [plan.subset(record).captions for record in plan.records]
    pairs = zip(plan.records, rules, strict=True)
    return list(dict.fromkeys(fixed_caption(record.caption, own) for record, own in pairs if not own.enable_wildcard))


def tell_unread_of_run(setup: EncodingSetup, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> None:
    """Let one process warn of the run's captions and sample prompts that no encoder reads to the end.

    Args:
        setup: Of the run.
        tokenizers: Of encoders. Nothing is told where one is not among them that the model has: it may read more.
        prompts: Different texts.
    """
    family, files = setup.family, setup.files
    has_all = all(name in tokenizers or not family.has_encoder(files, name) for name in family.encoder_names)
    if setup.accelerator.is_main_process and has_all:
        tell_unread_words(family, tokenizers, captions_of(setup.plan), prompts)


def tell_unread_words(
    family: ModelFamily, tokenizers: Mapping[str, Any], captions: Sequence[str], prompts: Sequence[str]
) -> None:
    """Warn of captions and sample prompts that no encoder reads to the end.

    Args:
        family: The model family.
        tokenizers: Of all its encoders.
        captions: Different texts.
        prompts: Likewise.
    """
    for texts, what, loss in ((captions, "caption", "learned"), (prompts, "sample prompt", "drawn")):
        sentence = _sentence(family, tokenizers, texts, what, loss)
        if sentence:
            logger.warning("%s", sentence)


def _sentence(
    family: ModelFamily, tokenizers: Mapping[str, Any], texts: Sequence[str], what: str, loss: str
) -> str | None:
    lengths = family.caption_lengths(tokenizers, texts)
    most = max((limit for _, limit in lengths.values()), default=0)
    numbers = [max(own) for own in zip(*(own for own, limit in lengths.values() if limit == most), strict=True)]
    unread = {text: number for text, number in zip(texts, numbers, strict=True) if number > most}
    if not unread:
        return None
    longest = max(unread, key=unread.__getitem__)
    are = "is" if len(unread) == 1 else "are"
    return (
        f"{counted(len(unread), what)} {are} longer than the {most} tokens that the text encoders read, begin and end "
        f"included; what is behind is not {loss}. The longest has {unread[longest]}: {longest[:_MAX_QUOTED]!r}."
        f"{_advice(family, most, unread[longest])}"
    )


def _advice(family: ModelFamily, limit: int, longest: int) -> str:
    if family.with_text_rows(2) == family.with_text_rows(1):
        return " Shorten it."
    more = [length for length in _LENGTHS if length + _ENDS > limit]
    fitting = [length for length in more if length + _ENDS >= longest] or more[-1:]
    return f" --max_token_length {fitting[0]} reads more." if fitting else " Shorten it."
