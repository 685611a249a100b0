"""A metadata file with its captions and tags mended: reads, cleans, writes, and says what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from library.data.problems import counted, first_names
from library.log import get_logger
from library.preparing.metadata.cleaning_rules import clean_caption, clean_tags, common_tags
from library.preparing.metadata.metadata_files import Entries
from library.preparing.metadata.rewriting import Rewriting
from library.preparing.metadata.tag_lists import has_wildcards, split_tags
from library.preparing.options.metadata import CleaningFileOptions
from library.preparing.tagging.replacing import without_underscores

logger = get_logger(__name__)

_TEXTS = ("tags", "caption")


def clean_file(options: CleaningFileOptions, *, is_verbose: bool) -> None:
    """Clean all captions and tags of a metadata file.

    Args:
        options: The files, and what stays.
        is_verbose: Tell each change.

    Raises:
        UserError: A file cannot be read or written, or the one that is there would lose something.
    """
    rewriting = Rewriting(options.source, "IN_JSON", options.target, is_overwrite=options.overwrite)
    entries = rewriting.read()
    cleaned, counts = clean_entries(entries, options.keep_tokens)
    rewriting.write(cleaned)
    if is_verbose:
        for name, entry in entries.items():
            _tell_changes(name, entry, cleaned[name])
    _tell_rules(counts)
    _tell_first(cleaned, options.keep_tokens)
    _tell(str(options.target), entries, cleaned)


def clean_entries(entries: Mapping[str, Mapping[str, Any]], num_kept: int) -> tuple[Entries, Counter[str]]:
    """Entries with their texts mended; a key that one does not have is not added.

    Args:
        entries: By name.
        num_kept: How many tags at the start of each stay.

    Returns:
        The entries, and how many tags each rule has changed or dropped, see `CleanedTags`.
    """
    common = common_tags((entry.get("tags") or "" for entry in entries.values()), num_kept)
    counts: Counter[str] = Counter()
    cleaned: Entries = {}
    for name, entry in entries.items():
        cleaned[name] = dict(entry)
        if entry.get("tags"):
            cleaned[name]["tags"], own = clean_tags(entry["tags"], num_kept=num_kept, common=common)
            counts += own
        if entry.get("caption"):
            cleaned[name]["caption"] = clean_caption(entry["caption"])
    return cleaned, counts


def _tell_changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for key in _TEXTS:
        if before.get(key) != after.get(key):
            logger.info("%s: %s: %r -> %r", name, key, before[key], after[key])


def _tell_rules(counts: Mapping[str, int]) -> None:
    what = (
        "tags: underscores became spaces in %d; dropped %d ratings, %d of hair, eyes and sleeves that may be another "
        "person's, %d that are there twice or in a longer tag."
    )
    logger.info(what, *(counts.get(rule, 0) for rule in ("underscores", "ratings", "contradictions", "repeats")))


def _tell_first(cleaned: Mapping[str, Mapping[str, Any]], num_kept: int) -> None:
    texts = (entry.get("tags") or "" for entry in cleaned.values())
    first = [tag for text in texts if not has_wildcards(text) for tag in split_tags(text)[:num_kept]]
    spaceless = [tag for tag in dict.fromkeys(first) if without_underscores(tag) != tag]
    if spaceless:
        what = "first tags that keep their underscores, as trigger words: %d (%s); --keep_tokens 0 changes them."
        logger.info(what, len(spaceless), first_names(spaceless))


def _tell(target: str, entries: Mapping[str, Mapping[str, Any]], cleaned: Mapping[str, Mapping[str, Any]]) -> None:
    changed = {key: sum(entries[name].get(key) != cleaned[name].get(key) for name in entries) for key in _TEXTS}
    absent = {key: [name for name in entries if not entries[name].get(key)] for key in _TEXTS}
    for key, names in absent.items():
        if names:
            logger.info("entries without %s: %d (%s).", key, len(names), first_names(names))
    kept = [name for name in entries if has_wildcards(entries[name].get("tags") or "")]
    if kept:
        logger.warning("tags with wildcards {a|b}, left as they are: %d (%s).", len(kept), first_names(kept))
    emptied = [name for name in entries if entries[name].get("tags") and not cleaned[name]["tags"]]
    if emptied:
        logger.warning("entries of whose tags nothing is left: %d (%s).", len(emptied), first_names(emptied))
    counts = (counted(len(entries), "entry", "entries"), changed["tags"], changed["caption"])
    logger.info("%s: %s (cleaned the tags of %d, the captions of %d).", target, *counts)
