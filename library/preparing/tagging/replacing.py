"""Tags in other words: "source1,target1;source2,target2", with a backslash before signs that are part of a tag."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WORD = re.compile(r"[^\W\d_]{2}")
_ESCAPED = re.compile(r"\\([,;])")


def spelling(tag: str) -> str:
    """What a tag is compared by: "long_hair" and "long hair" are the same tag."""
    return tag.replace("_", " ").strip()


def without_underscores(tag: str) -> str:
    """A tag with spaces for underscores. What has no two letters side by side is a face, such as ^_^ or (o)_(o)."""
    return tag.replace("_", " ") if _WORD.search(tag) else tag


def read_replacements(text: str) -> Mapping[str, str]:
    """Read pairs of tags.

    Args:
        text: "source1,target1;source2,target2"; `\\,` and `\\;` stand for the signs themselves. Blanks around tags are
            not part of them.

    Returns:
        {spelling of the source: target}.

    Raises:
        ValueError: It holds something else. The message goes on after the option's name.
    """
    pairs = _split(text, ";")
    if len(pairs) > 1 and not pairs[-1].strip():
        pairs = pairs[:-1]  # the last pair may end with its sign too
    found: dict[str, str] = {}
    for pair in pairs:
        tags = [_ESCAPED.sub(r"\1", part).strip() for part in _split(pair, ",")]
        if len(tags) != 2:
            raise ValueError(
                f'needs pairs "source,target" with ; between them, got {pair!r}; write \\, and \\; for signs that are '
                "part of a tag."
            )
        source, target = tags
        if not source or not target:
            raise ValueError(f"has a pair without source or target, {pair!r}. To drop a tag use --undesired_tags.")
        if spelling(source) in found:
            raise ValueError(f"has {source!r} as a source twice. Keep one.")
        found[spelling(source)] = target
    return found


def _split(text: str, sign: str) -> list[str]:
    """Parts between signs that have no backslash before them; backslashes are kept."""
    return re.split(rf"(?<!\\){sign}", text)
