"""Diagnoses of captions: stray files, encodings, captions that repeat, and pictures without the trigger word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from library.data.config.specs import DatasetSpec
from library.data.files.fixing import Remedy
from library.data.files.stray_captions import StrayCaptions
from library.data.report.diagnosis import Case, Diagnosis
from library.data.report.report import caption_source
from library.records import ImageRecord

MANY = 3  # pictures with one caption
_SHOWN = 60  # signs of a caption


def stray_diagnoses(strays: StrayCaptions) -> Iterator[Diagnosis]:
    """Files that are no picture's caption, or read only by luck."""
    orphans = tuple(Case((path,), "", (Remedy("set aside", path),)) for path in strays.orphans)
    doubtful = tuple(Case((path,), "may be another text") for path in strays.doubtful)
    summary, advice = "captions without picture", "Find their pictures, or move them to another folder"
    yield Diagnosis("warning", "orphan-caption", summary, advice, (*orphans, *doubtful))
    summary, advice = "captions not read for the case of their ending", "Rename them"
    yield Diagnosis("warning", "caption-ending", summary, advice, _renamings(strays.endings))
    summary = "captions not read for how their names are written"
    yield Diagnosis("warning", "caption-name", summary, advice, _renamings(strays.names))
    encoded = tuple(
        Case((path,), codec.upper(), (Remedy("saved as UTF-8", path, encoding=declared),))
        for path, codec, declared in strays.encoded
    )
    summary = "captions that are read, but are marked or declared as no plain UTF-8"
    yield Diagnosis("note", "marked-encoding", summary, "Save them as UTF-8 for other programs", encoded)


def _renamings(found: Sequence[tuple[Path, Path]]) -> tuple[Case, ...]:
    return tuple(
        Case((path,), f"has to be called {_told_name(path, right)}", (Remedy("renamed", path, right),))
        for path, right in found
    )


def _told_name(path: Path, right: Path) -> str:
    """The right name; where it looks like the wrong one, with what differs."""
    if unicodedata.normalize("NFC", path.name) != unicodedata.normalize("NFC", right.name):
        return right.name
    form = "composed (NFC)" if unicodedata.is_normalized("NFC", right.name) else "decomposed (NFD)"
    return f"{right.name} with {form} letters, as the picture is"


def repeated_captions(records: Sequence[ImageRecord], specs: Sequence[DatasetSpec]) -> Diagnosis:
    """Captions that many pictures have, from files of their own; class_tokens are meant to repeat."""
    owners: dict[tuple[str, bool], dict[str, ImageRecord]] = {}
    for record in records:
        if caption_source(record, specs[record.dataset].subsets[record.subset]) in ("file", "metadata"):
            owners.setdefault((record.caption, record.is_reg), {})[str(record.path)] = record
    cases = tuple(
        Case(tuple(record.path for record in own.values()), f'"{_short(caption)}"')
        for (caption, is_reg), own in owners.items()
        if len(own) >= MANY and not is_reg
    )
    advice = "Say what differs between the pictures, or all of it goes into the words they share"
    return Diagnosis("warning", "duplicate-caption", f"captions that {MANY} pictures or more share", advice, cases)


def missing_trigger(
    records: Sequence[ImageRecord], texts: Sequence[Sequence[str]], word: str, *, num_training: int
) -> Diagnosis:
    """Training pictures whose caption lacks the trigger word; regularisation pictures and empty captions are others'.

    Args:
        records: All pictures, training first.
        texts: For each record what its caption can become.
        word: It, or several words; letter case plays no part.
        num_training: How many records train.
    """
    pattern = re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE)
    cases = tuple(
        Case((record.path,), f'"{_short(own[0])}"')
        for record, own in zip(records[:num_training], texts, strict=False)
        if not record.is_reg and any(own) and not any(pattern.search(text) for text in own)
    )
    advice = "Put it into each caption, or set caption_prefix"
    return Diagnosis("warning", "trigger-word", f'captions without the trigger word "{word}"', advice, cases)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
