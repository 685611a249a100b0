"""A metadata file with its captions and tags mended: reads, cleans, writes, and says what was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from library.data.problems import first_names
from library.log import get_logger
from library.preparing.metadata.cleaning_rules import clean_caption, clean_tags
from library.preparing.metadata.metadata_files import (
    Entry,
    check_output,
    read_metadata_file,
    refuse_loss,
    write_metadata_file,
)
from library.preparing.metadata.tag_lists import has_wildcards

logger = get_logger(__name__)

_RULES: Mapping[str, Callable[[str], str]] = {"tags": clean_tags, "caption": clean_caption}


def clean_file(source: Path, target: Path, *, is_verbose: bool) -> None:
    """Clean all captions and tags of a metadata file.

    Args:
        source: The file.
        target: What is written; it may be the same file.
        is_verbose: Tell each change.

    Raises:
        UserError: A file cannot be read or written, or the one that is there would lose something.
    """
    check_output(target)
    entries = read_metadata_file(source, "IN_JSON")
    cleaned = {name: clean_entry(entry) for name, entry in entries.items()}
    if not (target.exists() and source.samefile(target)):
        refuse_loss(target, cleaned, "move it away")
    write_metadata_file(target, cleaned)
    if is_verbose:
        for name, entry in entries.items():
            _tell_changes(name, entry, cleaned[name])
    _tell(target, entries, cleaned)


def clean_entry(entry: Mapping[str, Any]) -> Entry:
    """An entry with its texts mended; a key that it does not have is not added."""
    texts = {key: rule(entry[key]) for key, rule in _RULES.items() if entry.get(key)}
    return {**entry, **texts}


def _tell_changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for key in _RULES:
        if before.get(key) != after.get(key):
            logger.info("%s: %s: %r -> %r", name, key, before[key], after[key])


def _tell(target: Path, entries: Mapping[str, Entry], cleaned: Mapping[str, Entry]) -> None:
    changed = {key: sum(entries[name].get(key) != cleaned[name].get(key) for name in entries) for key in _RULES}
    absent = {key: [name for name in entries if not entries[name].get(key)] for key in _RULES}
    for key, names in absent.items():
        if names:
            logger.info("entries without %s: %d (%s).", key, len(names), first_names(names))
    kept = [name for name in entries if has_wildcards(entries[name].get("tags") or "")]
    if kept:
        logger.warning("tags with wildcards {a|b}, left as they are: %d (%s).", len(kept), first_names(kept))
    emptied = [name for name in entries if entries[name].get("tags") and not cleaned[name]["tags"]]
    if emptied:
        logger.warning("entries of whose tags nothing is left: %d (%s).", len(emptied), first_names(emptied))
    counts = (len(entries), changed["tags"], changed["caption"])
    logger.info("%s: %d entries (cleaned the tags of %d, the captions of %d).", target, *counts)
