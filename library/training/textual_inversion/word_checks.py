"""What can be wrong with a new word, told before weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.data.plan.captions import cache_conflicts, fixed_caption
from library.data.problems import counted, first_names
from library.errors import CheckpointError, DatasetError, OptionError
from library.log import get_logger
from library.models.word_places import has_word, word_pattern

if TYPE_CHECKING:
    from torch import Tensor

    from library.models.tokenizers import TextTokenizer
    from library.records import ImageRecord
    from library.training.planning import DataPlan

logger = get_logger(__name__)

_AS_TOKENS = ("{}", "{}</w>", "\u2581{}")  # how vocabularies write a word


def check_captions(plan: DataPlan, word: str) -> None:
    """See that there is something to learn from. Pictures of regularisation show something else.

    Raises:
        DatasetError: No caption has the word.
    """
    records, without = _without(plan, word)
    if records and len(without) == len(records):
        count = f"none of the {len(records)} captions has" if len(records) > 1 else "the only caption does not have"
        raise DatasetError(
            f"{plan.source}: {count} the word {word} of --token_string, so nothing could be learned. Write it into the "
            "captions, set caption_prefix, or give --use_object_template."
        )


def tell_captions(plan: DataPlan, word: str) -> None:
    """Warn of captions without the word."""
    records, without = _without(plan, word)
    if without:
        logger.warning(
            "--token_string: %d of %d captions do not have the word %s, and nothing is learned from their pictures: %s",
            *(len(without), len(records), word, first_names(without)),
        )


def check_reach(
    plan: DataPlan,
    word: str,
    tokenizers: Mapping[str, TextTokenizer],
    *,
    number: int,
    cuts: Callable[[Mapping[str, TextTokenizer], str], Mapping[str, int]],
) -> None:
    """See that text encoders read captions as far as the word. Captions whose parts change places are passed over.

    Args:
        plan: The data.
        word: That is learned.
        tokenizers: Of the encoders that learn it, which do not know it yet.
        number: Of vectors.
        cuts: Where encoders stop reading a caption, as a family has it.

    Raises:
        DatasetError: None would ever read the word.
    """
    from library.models.added_words import with_word

    records = [record for record in plan.training_records if not record.is_reg and has_word(_text(plan, record), word)]
    too_long = {}
    for name, tokenizer in tokenizers.items():
        first = tokenizer.vocabulary.rows
        own = {name: with_word(tokenizer, word, range(first, first + number))}
        too_long[name] = [
            record.path.name
            for record in records
            if (text := _fixed_text(plan, record)) is not None and _is_behind(word, text, cuts(own, text).get(name))
        ]
    if records and all(len(names) == len(records) for names in too_long.values()):
        raise DatasetError(
            f"{plan.source}: captions are so long that no text encoder reads them as far as the word {word} of "
            "--token_string, so nothing could be learned. Write the word further to the front, or shorten them."
        )
    for name, names in too_long.items():
        if names:
            logger.warning(
                "--token_string: %d of %d captions are so long that %s does not read the whole word %s: %s",
                *(len(names), len(records), name, word, first_names(names)),
            )


def _without(plan: DataPlan, word: str) -> tuple[list[ImageRecord], list[str]]:
    """What is learned from, and the names of those whose captions do not have the word."""
    records = [record for record in plan.training_records if not record.is_reg]
    return records, [record.path.name for record in records if not has_word(_text(plan, record), word)]


def _text(plan: DataPlan, record: ImageRecord) -> str:
    rules = plan.subset(record).captions
    return " ".join(filter(None, (rules.caption_prefix, record.caption, rules.caption_suffix)))


def _fixed_text(plan: DataPlan, record: ImageRecord) -> str | None:
    """The caption as it is read each time; None where its parts change."""
    rules = plan.subset(record).captions
    return None if cache_conflicts(rules) else fixed_caption(record.caption, rules)


def _is_behind(word: str, text: str, cut: int | None) -> bool:
    """Whether a word, all of it or its last vectors, is where an encoder no longer reads."""
    found = word_pattern(word).search(text)
    return cut is not None and found is not None and found.start() >= cut


def check_new(word: str, tokenizers: Mapping[str, TextTokenizer]) -> None:
    """See that no tokenizer has the word as a token of its own.

    Raises:
        OptionError: One has.
    """
    for name, tokenizer in tokenizers.items():
        spellings = {form.format(own) for form in _AS_TOKENS for own in (word, word.lower())}
        if spellings & tokenizer.vocabulary.ids.keys():
            raise OptionError(
                f"--token_string {word}: the tokenizer of {name} knows this word already, and it would lose its "
                "meaning. Give a word that nobody uses."
            )


def first_ids(words: str, tokenizers: Mapping[str, TextTokenizer], number: int) -> dict[str, list[int]]:
    """{encoder: id of the token that each vector begins as}, of --init_word. Too few are repeated, of too many the last
    are left out, which is told.

    Raises:
        OptionError: There is no token.
    """
    found = {}
    for name, tokenizer in tokenizers.items():
        ids = tokenizer.vocabulary.encode(words)
        if not ids:
            raise OptionError(f"--init_word {words!r} is no token for {name}. Give a word that it knows.")
        if len(ids) != number:
            logger.info(
                "--init_word %s: %d tokens for %s, and %d vectors: %s",
                *(words, len(ids), name, number),
                "the last are left out" if len(ids) > number else "they are repeated",
            )
        found[name] = [ids[index % len(ids)] for index in range(number)]
    return found


def fitting_vectors(path: Path, tables: Mapping[str, Any], number: int) -> dict[str, Tensor]:
    """{encoder: [n, D]} of the file of --weights.

    Args:
        path: The file.
        tables: {encoder that learns: its embedding of tokens}, with `embedding_dim`.
        number: Of vectors.

    Raises:
        CheckpointError: It is no embedding, or one of another model.
        OptionError: It has another number of vectors.
    """
    from library.checkpoint.embeddings import read_embedding
    from library.models.added_words import vectors_for

    vectors = vectors_for(read_embedding(path, "--weights"), tables, f"--weights: {path}")
    if missing := [name for name in tables if name not in vectors]:
        raise CheckpointError(f"--weights: {path} has no vectors of {', '.join(missing)}. Use another file.")
    there = len(next(iter(vectors.values())))
    if there != number:
        raise OptionError(
            f"--weights: {path} has {counted(there, 'vector')}, and --num_vectors_per_token is {number}. "
            f"Give --num_vectors_per_token {there}."
        )
    return vectors
