"""Texts of pictures merged into the entries of a metadata file. Pure: no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from library.preparing.metadata.metadata_files import Entries

_TEXTS = {"caption", "tags"}


@dataclass(frozen=True)
class Merged:
    """Entries, and how they came to be.

    Attributes:
        entries: All of them.
        new: Names of those that were not there.
        updated: Names of those that were there and have changed, by more than their name.
        unchanged: Names of those of given pictures that are as they were.
        unemptied: Names of those that keep the text they have, since an empty one does not replace it.
        replaced: Names of those whose text is now another.
    """

    entries: Entries
    new: tuple[str, ...]
    updated: tuple[str, ...]
    unchanged: tuple[str, ...]
    unemptied: tuple[str, ...]
    replaced: tuple[str, ...]


def merge_entries(
    existing: Mapping[str, Mapping[str, Any]],
    renamed: Mapping[str, str],
    values: Mapping[str, Mapping[str, Any]],
) -> Merged:
    """Put values into entries. Other keys of an entry stay, and so do entries without new values, and texts for which
    there would be an empty one.

    Args:
        existing: Entries by name.
        renamed: {name in `existing`: its new name}; no two entries may come to have one name.
        values: {name: what is known of the picture now}, by the new names.
    """
    entries = {renamed.get(name, name): dict(entry) for name, entry in existing.items()}
    if len(entries) < len(existing):
        raise ValueError("two entries were given one name")
    new: list[str] = []
    updated: list[str] = []
    unchanged: list[str] = []
    unemptied: list[str] = []
    replaced: list[str] = []
    for name, known in values.items():
        before = entries.get(name)
        kept = {key: before[key] for key, value in known.items() if value == "" and before.get(key)} if before else {}
        entries[name] = {**(before or {}), **known, **kept}
        if kept:
            unemptied.append(name)
        if before and any(before.get(key) not in (None, "", entries[name][key]) for key in _TEXTS & known.keys()):
            replaced.append(name)
        kind = new if before is None else unchanged if entries[name] == before else updated
        kind.append(name)
    return Merged(entries, tuple(new), tuple(updated), tuple(unchanged), tuple(unemptied), tuple(replaced))
