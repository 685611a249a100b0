"""A `Checkup` as lines of text and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from library.data.files.fixing import Mended
from library.data.problems import counted
from library.data.report.diagnosis import SEVERITIES, Checkup, Diagnosis
from library.data.report.report_text import NUM_NAMES, WIDTH

JSON_VERSION = 1
_MOST_PATHS = 6  # of a case in the text


def describe_checkup(checkup: Checkup, *, mended: Sequence[Mended] = (), is_fixed: bool = False) -> list[str]:
    """The findings by weight, and in the last line what they come to.

    Args:
        checkup: The state, after mending where that was asked for.
        mended: What was done.
        is_fixed: `--fix` was given.
    """
    validation = f", {checkup.num_validation:,} of them for validation" if checkup.num_validation else ""
    number = counted(checkup.num_pictures, "picture")
    lines = [f"check of {checkup.source} at {checkup.sizes}: {number}{validation}", ""]
    if mended:
        lines += [f"MENDED: {counted(len(mended), 'file')}"]
        lines += [f"  {each.path} {_what_was_done(each)}" for each in mended]
        lines.append("")
    for severity in SEVERITIES:
        found = checkup.of(severity)
        if found:
            lines.append(f"{severity.upper()}S: {checkup.number(severity):,}")
            lines += (line for each in found for line in _diagnosis_lines(each))
            lines.append("")
    return [*lines, summary(checkup, is_fixed=is_fixed)]


def summary(checkup: Checkup, *, is_fixed: bool = False) -> str:
    """What the findings come to, and what to do: one line."""
    numbers = ", ".join(counted(checkup.number(severity), severity) for severity in SEVERITIES)
    if checkup.number("error"):
        verdict = "a training would stop; put the errors right"
    elif checkup.number("warning"):
        verdict = "a training would run; look at the warnings first"
    else:
        verdict = "ready to train"
    offer = ""
    if checkup.num_mendable and not is_fixed:
        offer = f"; --fix would mend {checkup.num_mendable:,} of these"
    return f"{numbers}: {verdict}{offer}."


def checkup_json(checkup: Checkup, mended: Sequence[Mended] = ()) -> str:
    """All findings, machine readable; `version` changes when the meaning of a key does."""
    content: dict[str, Any] = {
        "version": JSON_VERSION,
        "source": checkup.source,
        "resolution": checkup.sizes,
        "pictures": checkup.num_pictures,
        "validation_pictures": checkup.num_validation,
        **{f"{severity}s": checkup.number(severity) for severity in SEVERITIES},
        "mendable": checkup.num_mendable,
        "mended": [{"action": each.action, "file": str(each.path), "now": str(each.place)} for each in mended],
        "findings": [_diagnosis_json(each) for each in checkup.diagnoses],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _what_was_done(mended: Mended) -> str:
    if mended.action == "saved as UTF-8":
        return f"was saved as UTF-8; as it was it is {mended.place}"
    return f"was {mended.action} to {mended.place}" if mended.action == "renamed" else f"is now {mended.place}"


def _diagnosis_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """A title and the first cases."""
    mended = f" (--fix mends {diagnosis.num_mendable:,})" if diagnosis.num_mendable else ""
    advice = f". {diagnosis.advice}" if diagnosis.advice else ""
    title = f"{diagnosis.code}, {len(diagnosis.cases):,}: {diagnosis.summary}{advice}{mended}"
    yield from textwrap.wrap(title, WIDTH, initial_indent="  ", subsequent_indent="    ")
    for case in diagnosis.cases[:NUM_NAMES]:
        shown = case
        if len(case.paths) > _MOST_PATHS:
            more = f"and {len(case.paths) - _MOST_PATHS:,} more"
            shown = case._replace(paths=case.paths[:_MOST_PATHS], detail=", ".join(filter(None, (more, case.detail))))
        yield f"      {shown}"
    if len(diagnosis.cases) > NUM_NAMES:
        yield f"      and {len(diagnosis.cases) - NUM_NAMES:,} more; --json and --output list all"


def _diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "code": diagnosis.code,
        "severity": diagnosis.severity,
        "summary": diagnosis.summary,
        "advice": diagnosis.advice,
        "cases": [
            {"files": [str(path) for path in case.paths], "detail": case.detail, "fix": bool(case.remedies)}
            for case in diagnosis.cases
        ],
    }
