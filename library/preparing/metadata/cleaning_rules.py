"""What is mended in the tags and the caption of a picture. Pure functions, a table each; what they do twice is done.

Tags are mended in the order of `clean_tags`: spaces for underscores, no ratings, nothing that may be another person's,
nothing that a longer tag says too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from library.preparing.metadata.tag_lists import has_wildcards, join_tags, split_tags
from library.preparing.tagging.replacing import without_underscores

_RATING = re.compile(r"rating(\s*:\s*\w+| (safe|general|sensitive|questionable|explicit))", re.IGNORECASE)

_SEVERAL = re.compile(r"(([2-9]|\d{2,})\+?|multiple) ?(girls|boys|others)", re.IGNORECASE)
_ONE = re.compile(r"1 ?(girl|boy|other)", re.IGNORECASE)

_COLOUR = (
    r"((light|dark|pale) )?(aqua|black|blonde|blue|brown|green|gr[ea]y|orange|pink|purple|red|silver|white|yellow|"
    r"golden|violet|lavender|teal|amber|crimson|multicolored|two-tone|gradient|streaked|rainbow|platinum blonde|"
    r"strawberry blonde)"
)
# Of a person there is one of each; where several persons are told of more, the model cannot learn whose is which.
_OF_ONE_PERSON = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"((very|absurdly|extremely) )?(long|short|medium) hair",
        rf"{_COLOUR} hair",
        r"(straight|wavy|curly|messy|spiked|drill) hair",
        r"(bob|hime|pixie|bowl|wolf) cut|undercut",
        r"((side|high|low|short|folded) )?(ponytail|twintails)|([\w-]+ )?(braid|braids)|"
        r"([\w-]+ )*(hair|side) bun|double bun|(one|two) side up|twin drills|ahoge|sidelocks",
        r"((light|dark) )?[\w-]+ eyes",
        r"((very|extra) )?[\w-]+ sleeves|sleeveless",
    )
)

_NEGATIONS = ("no", "without")

_STYLES = "anime|cartoon|manga"
_PERSONS = (
    "girl|girls|boy|boys|woman|women|man|men|lady|ladies|female|females|male|males|character|characters|person|people|"
    "child|children|figure|guy|guys"
)
_STYLED_PERSON = re.compile(rf"\b((?P<article>an?) )?((?:{_STYLES}) )+(?P<person>{_PERSONS})\b", re.IGNORECASE)
_NONSENSE = re.compile(r"\b((?P<article>an?) )?((?:arafed|araffe|araffed|arafeed) )+(?P<person>\w+)", re.IGNORECASE)
_REPEATED = re.compile(rf"\b({_STYLES}|{_PERSONS})( \1\b)+", re.IGNORECASE)
_SAME_WORDS = (("lady", "woman"), ("ladies", "women"))  # one word for one thing


def clean_tags(text: str) -> str:
    """The tags of a picture, mended. With wildcards they stay as they are: what is a tag cannot be told."""
    if has_wildcards(text):
        return text
    tags = [without_underscores(tag) for tag in split_tags(text)]
    tags = [tag for tag in tags if not is_rating(tag)]
    return join_tags(without_repeats(without_contradictions(tags)))


def is_rating(tag: str) -> bool:
    """Whether a tag says for whom a picture is fit, such as "rating:safe"."""
    return _RATING.fullmatch(tag) is not None


def has_several_persons(tags: Sequence[str]) -> bool:
    """Whether tags count more than one person."""
    return any(_SEVERAL.fullmatch(tag) for tag in tags) or len({tag for tag in tags if _ONE.fullmatch(tag)}) > 1


def without_contradictions(tags: Sequence[str]) -> list[str]:
    """The tags without those of hair, eyes and sleeves of which several persons have more than one."""
    if not has_several_persons(tags):
        return list(tags)
    dropped: set[str] = set()
    for pattern in _OF_ONE_PERSON:
        alike = {tag for tag in tags if pattern.fullmatch(tag)}
        dropped |= alike if len(alike) > 1 else set()
    return [tag for tag in tags if tag not in dropped]


def without_repeats(tags: Sequence[str]) -> list[str]:
    """The tags, each once, without those that a longer one ends with: "shirt" beside "white shirt"."""
    distinct = list(dict.fromkeys(tags))
    endings = {ending for tag in distinct for ending in _endings(tag)}
    return [tag for tag in distinct if tag not in endings]


def _endings(tag: str) -> list[str]:
    words = tag.split(" ")
    return [] if words[0].lower() in _NEGATIONS else [" ".join(words[start:]) for start in range(1, len(words))]


def clean_caption(text: str) -> str:
    """The caption of a picture, mended, line by line: words of captioners that say nothing about it are dropped."""
    return "\n".join(_clean_line(line) for line in text.split("\n"))


def _clean_line(line: str) -> str:
    for pattern in (_NONSENSE, _STYLED_PERSON):
        line = pattern.sub(_without_word, line)
    for word, other in _SAME_WORDS:
        line = re.sub(rf"\b{word}\b", other, line)
    return _REPEATED.sub(r"\1", line)


def _without_word(match: re.Match[str]) -> str:
    """What stays, with the article that fits: "an anime girl" is "a girl"."""
    person, article = match["person"], match["article"]
    if not article:
        return person
    fitting = "an" if person[0].lower() in "aeiou" else "a"
    return f"{fitting.capitalize() if article[0].isupper() else fitting} {person}"
