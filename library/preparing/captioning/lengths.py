"""How words are chosen, and how long captions may be: what was asked for, the prompt, what a model has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from library.errors import OptionError
from library.preparing.captioning.kinds import CaptionerKind
from library.preparing.options.captioning import LONG_CAPTION, CaptioningOptions


@dataclass(frozen=True, kw_only=True)
class WordChoice:
    """How words are chosen.

    Attributes:
        num_beams: Beginnings that a search for the likeliest words follows; None draws words.
        top_p: Draws are among the likeliest words that together have this chance.
        temperature: Logits are divided by it before a draw.
        max_length: In tokens.
        min_length: In tokens.
        seed: Of the draws.
    """

    num_beams: int | None
    top_p: float
    temperature: float
    max_length: int
    min_length: int
    seed: int


def word_choice(options: CaptioningOptions, kind: CaptionerKind, *, num_prompt: int, room: int | None) -> WordChoice:
    """What the options say about words.

    Args:
        options: Of the script.
        kind: Of the model. One that is told what to do has long captions if nothing is said of their length.
        num_prompt: Tokens before the caption, in the model's memory of it.
        room: Tokens that the model can take with them; None where that is not known.

    Raises:
        OptionError: Prompt and caption do not fit into what was asked for, or into the model.
    """
    asked = options.generation
    longest = LONG_CAPTION if kind.is_told and options.max_length is None else asked.max_length
    if room is not None:
        longest = _within(options, longest, room - num_prompt if kind.is_told else room)
    if not kind.is_told and longest <= num_prompt <= 1:
        raise OptionError(f"--max_length must be at least 2 for this model, got {longest}.")
    if not kind.is_told and num_prompt >= longest:
        raise OptionError(
            f"--prompt has {num_prompt} tokens, and --max_length {longest} counts them too. Give a shorter prompt or a "
            "larger --max_length."
        )
    if asked.min_length > longest:
        raise OptionError(f"--min_length {asked.min_length} is above --max_length {longest}. Lower it.")
    return WordChoice(
        num_beams=asked.num_beams if asked.beam_search else None,
        top_p=asked.top_p,
        temperature=asked.temperature,
        max_length=longest,
        min_length=asked.min_length,
        seed=asked.seed,
    )


def prompt_length(kind: CaptionerKind, config: Any, ids: Any) -> int:
    """Tokens that stand before a caption in what the model goes on from.

    Args:
        kind: Of the model. Those of two parts read the prompt in one, and begin the caption in the other.
        config: Of the model.
        ids: Of the prompt, with the places of a picture. Shape [B, P]; None where there is no prompt.
    """
    if config.is_encoder_decoder:
        return 0
    if ids is None:  # BLIP-2 then puts the places of a picture and its first token before the caption itself
        return getattr(config, "num_query_tokens", 0) + 1
    return int(ids.shape[1]) - (kind.model_type == "blip")  # BLIP cuts the end mark of its prompt


def positions(config: Any) -> int | None:
    """How many tokens a model can take; None where nothing says it."""
    try:
        words = config.get_text_config(decoder=True)
    except ValueError:  # it has several parts that write
        return None
    number = getattr(words, "max_position_embeddings", None)
    return number if isinstance(number, int) and number > 0 else None


def _within(options: CaptioningOptions, longest: int, room: int) -> int:
    """The longest caption that the model has room for, if not more was asked for in so many words."""
    if room < 1:
        raise OptionError("--prompt leaves no room for a caption in this model. Give a shorter prompt.")
    if longest > room and options.max_length is not None:
        raise OptionError(f"--max_length {longest}: this model has room for {room} tokens. Give at most {room}.")
    return min(longest, room)
