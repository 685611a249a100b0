"""The findings of the doctor on top of the preview page; pictures that look alike are shown side by side."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from library.data.report.checkup_text import summary
from library.data.report.diagnosis import Case, Checkup, Diagnosis, Severity
from library.data.report.page.contents import PagePicture

MOST_SHOWN = 60  # cases with pictures, of one kind
_TONES: Mapping[Severity, str] = {"error": "bad", "warning": "warn", "note": "calm"}
_SHOWN_ALIKE = ("exact-duplicate", "near-duplicate", "leak")


def findings_panel(checkup: Checkup, pictures: Sequence[PagePicture]) -> str:
    """HTML of all findings: errors open, the rest closed.

    Args:
        checkup: The findings.
        pictures: Of the page; those that look alike are shown again.
    """
    small = {picture.path: picture.thumbnail.jpeg for picture in pictures if picture.thumbnail is not None}
    panels = "".join(_panel(each, small) for each in checkup.diagnoses)
    return f'<p class="verdict">{escape(summary(checkup))}</p>\n<div class="panels">{panels}</div>\n'


def _panel(diagnosis: Diagnosis, small: Mapping[Path, bytes]) -> str:
    is_open = " open" if diagnosis.severity == "error" else ""
    title = f"{len(diagnosis.cases):,} &middot; {escape(diagnosis.summary)} <code>{diagnosis.code}</code>"
    advice = f"<li>{escape(diagnosis.advice)}.</li>" if diagnosis.advice else ""
    items = "".join(_items(diagnosis, small))
    tone = _TONES[diagnosis.severity]
    return f'<details class="panel {tone}"{is_open}><summary>{title}</summary><ul>{advice}{items}</ul></details>\n'


def _items(diagnosis: Diagnosis, small: Mapping[Path, bytes]) -> Iterator[str]:
    is_shown = diagnosis.code in _SHOWN_ALIKE
    for number, case in enumerate(diagnosis.cases):
        images = "".join(_images(case, small)) if is_shown and number < MOST_SHOWN else ""
        yield f"<li>{images}{escape(str(case))}</li>"


def _images(case: Case, small: Mapping[Path, bytes]) -> Iterator[str]:
    for path in case.paths:
        if path in small:
            data = base64.b64encode(small[path]).decode("ascii")
            yield f'<img class="alike" src="data:image/jpeg;base64,{data}" alt="{escape(path.name)}" loading="lazy">'
