"""What is mended in the tags and the caption of a picture. Pure functions, a table each; what they do twice is done.

Tags are mended in the order of `clean_tags`: no ratings, spaces for underscores, nothing that may be another person's,
nothing that a longer tag says too. The first ones, such as a trigger word, are never dropped by the last two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from library.preparing.metadata.tag_lists import has_wildcards, join_tags, split_tags
from library.preparing.tagging.replacing import spelling, without_underscores

_RATING = re.compile(r"rating(\s*:\s*\w+| (safe|general|sensitive|questionable|explicit))", re.IGNORECASE)
_BARE_RATINGS = ("general", "sensitive", "questionable", "explicit")  # as taggers write them, first or last

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


class CleanedTags(NamedTuple):
    """Tags of a picture, mended.

    Attributes:
        text: The tags.
        counts: How many were changed ("underscores") or dropped ("ratings", "contradictions", "repeats") by each rule.
    """

    text: str
    counts: Counter[str]


def clean_tags(text: str, *, num_kept: int = 1, common: Collection[str] = ()) -> CleanedTags:
    """The tags of a picture, mended. With wildcards they stay as they are: what is a tag cannot be told.

    Args:
        text: The tags.
        num_kept: That many at the start, behind a rating, are not dropped, and keep underscores unless they are common.
        common: Spellings of tags that pictures have at other places too, see `common_tags`.
    """
    counts: Counter[str] = Counter()
    if has_wildcards(text):
        return CleanedTags(text, counts)
    written = split_tags(text)
    rated = without_ratings(written)
    spaced = [_spaced(tag, number < num_kept and spelling(tag) not in common) for number, tag in enumerate(rated)]
    clear = without_contradictions(spaced, num_kept)
    distinct = without_repeats(clear, num_kept)
    cleaned = without_ratings(distinct)  # what stood behind one may be gone
    counts["ratings"] = len(written) - len(rated) + len(distinct) - len(cleaned)
    counts["underscores"] = sum(old != new for old, new in zip(rated, spaced, strict=True))
    counts["contradictions"] = len(spaced) - len(clear)
    counts["repeats"] = len(clear) - len(distinct)
    return CleanedTags(join_tags(cleaned), counts)


def common_tags(texts: Iterable[str], num_kept: int) -> frozenset[str]:
    """Spellings of the tags that stand behind the first ones somewhere: these are no trigger words.

    Args:
        texts: Tags of all pictures.
        num_kept: How many are the first ones.
    """
    lists = (without_ratings(split_tags(text)) for text in texts if not has_wildcards(text))
    return frozenset(spelling(tag) for tags in lists for tag in tags[num_kept:])


def _spaced(tag: str, is_kept: bool) -> str:
    return tag if is_kept else without_underscores(tag)


def is_rating(tag: str) -> bool:
    """Whether a tag says for whom a picture is fit, wherever it stands, such as "rating:safe" or "rating_safe"."""
    return _RATING.fullmatch(spelling(tag)) is not None


def without_ratings(tags: Sequence[str]) -> list[str]:
    """The tags without ratings. A bare one ("sensitive") is only known as one where it stands first or last."""
    left = [tag for tag in tags if not is_rating(tag)]
    while left and left[0].lower() in _BARE_RATINGS:
        left.pop(0)
    while left and left[-1].lower() in _BARE_RATINGS:
        left.pop()
    return left


def has_several_persons(tags: Sequence[str]) -> bool:
    """Whether tags count more than one person."""
    return any(_SEVERAL.fullmatch(tag) for tag in tags) or len({tag for tag in tags if _ONE.fullmatch(tag)}) > 1


def without_contradictions(tags: Sequence[str], num_kept: int) -> list[str]:
    """The tags without those of hair, eyes and sleeves of which several persons have more than one; the first stay."""
    plain = [without_underscores(tag) for tag in tags]
    if not has_several_persons(plain):
        return list(tags)
    dropped: set[str] = set()
    for pattern in _OF_ONE_PERSON:
        alike = {tag for tag in plain if pattern.fullmatch(tag)}
        dropped |= alike if len(alike) > 1 else set()
    return [*tags[:num_kept], *(tag for tag in tags[num_kept:] if tag not in dropped)]


def without_repeats(tags: Sequence[str], num_kept: int) -> list[str]:
    """The tags, each once, without those that a longer one ends with: "shirt" beside "white shirt"; the first stay."""
    kept = list(tags[:num_kept])
    endings = {ending for tag in tags for ending in _endings(without_underscores(tag))}
    return [*kept, *(tag for tag in dict.fromkeys(tags[num_kept:]) if tag not in endings and tag not in kept)]


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
