"""Prompts with variants: "a {red|green} car" is one of two prompts, "a {e$$red|green} car" is both in turn.

In braces, from left to right and each but the last optional:

    e$$         every choice in turn, in place of one by chance
    2$$  1-2$$  how many choices, or between which numbers
    , $$        what stands between several choices (", " if not said)
    a|b|c       the choices

Braces may stand inside braces, the inner ones are settled first. Braces with neither | nor $$ stay as they are.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from library.errors import OptionError
from library.generation.prompt_lines import shortened
from library.rng import python_stream

MAX_VARIANTS = 10_000  # of one prompt
_BRACES = re.compile(r"\{([^{}]*(?:\||\$\$)[^{}]*)\}")
_COUNTS = re.compile(r"(\d{1,4})?(-)?(\d{1,4})?")
_SEPARATOR = ", "


class _Choice(NamedTuple):
    """What braces say: between `least` and `most` of `choices`, joined."""

    is_every: bool
    least: int
    most: int
    separator: str
    choices: tuple[str, ...]


def expand_variants(text: str, *, seed: int, number: int = 1, place: str = "--prompt") -> list[str]:
    """The prompts that a text with variants stands for.

    Args:
        text: A whole line: options behind the prompt may have variants too.
        seed: Of what is chosen by chance. The same seed, text and place in the list give the same prompt.
        number: Prompts that are wanted, if nothing in the text asks for every choice.
        place: Where the text comes from, for messages.

    Returns:
        `number` prompts, or one for each combination of what is asked for in full.

    Raises:
        OptionError: Braces ask for more choices than there are, or for too many prompts.
    """
    is_every = re.search(r"\{\s*e\$\$", text, re.IGNORECASE) is not None
    rounds = [_settled(text, python_stream(seed, "variants", text, index), place) for index in range(number)]
    prompts = list(itertools.islice(rounds[0] if is_every else map(next, rounds), MAX_VARIANTS + 1))
    if len(prompts) > MAX_VARIANTS:
        raise OptionError(
            f'{place}: "{shortened(text)}" stands for more than {MAX_VARIANTS:,} prompts. Use fewer "e$$".'
        )
    return prompts


def _settled(text: str, draws: random.Random, place: str) -> Iterator[str]:
    """The text with all braces settled; several where every choice is asked for."""
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    choice = _read(found[1], place)
    for part in _every(choice) if choice.is_every else (_by_chance(choice, draws),):
        yield from _settled(f"{text[: found.start()]}{part}{text[found.end() :]}", draws, place)


def _every(choice: _Choice) -> Iterator[str]:
    for count in range(choice.least, choice.most + 1):
        for parts in itertools.combinations(choice.choices, count):
            yield choice.separator.join(parts)


def _by_chance(choice: _Choice, draws: random.Random) -> str:
    count = draws.randint(choice.least, choice.most)
    return choice.separator.join(draws.sample(choice.choices, count))


def _read(inside: str, place: str) -> _Choice:
    """What braces say."""
    *before, last = inside.split("$$")
    choices = tuple(last.split("|"))
    is_every = bool(before) and before[0].strip().lower() == "e"
    before = before[is_every:]
    counts = _COUNTS.fullmatch(before[0].strip()) if before else None
    before = before[counts is not None :]
    if len(before) > 1:
        raise OptionError(f'{place}: "{{{shortened(inside)}}}" has too many $$. Write {{e$$1-2$$, $$a|b}} at most.')
    least, most = (1, 1) if counts is None or not counts[0] else _range(counts, len(choices))
    if not 0 <= least <= most <= len(choices):
        raise OptionError(f'{place}: "{{{shortened(inside)}}}" asks for {_count_words(least, most)} of {len(choices)}.')
    return _Choice(is_every, least, most, before[0] if before else _SEPARATOR, choices)


def _count_words(least: int, most: int) -> str:
    """How many choices are asked for."""
    return str(least) if least == most else f"{least} to {most}"


def _range(counts: re.Match[str], number: int) -> tuple[int, int]:
    """ "2" is two, "1-2" one or two, "2-" two or more, "-2" up to two."""
    first, dash, last = counts.groups()
    if dash is None:
        return int(first), int(first)
    return int(first or 1), int(last or number)
