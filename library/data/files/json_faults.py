"""What is wrong with a JSON text, and where, in words for the one who wrote it."""

from __future__ import annotations

import json
import re


def describe_fault(error: json.JSONDecodeError) -> tuple[str, str]:
    """The place, as "line 3, column 24", and the reason. A comma behind the last item is named as what it is."""
    comma = _trailing_comma(error.doc, error.pos)
    if comma is None:
        return f"line {error.lineno}, column {error.colno}", error.msg
    line, column = error.doc.count("\n", 0, comma) + 1, comma - error.doc.rfind("\n", 0, comma)
    return f"line {line}, column {column}", "trailing comma behind the last item"


def _trailing_comma(text: str, place: int) -> int | None:
    """Where it is, if that is the fault at `place`: Python reports the bracket behind it, or from 3.13 on the comma."""
    if text[place : place + 1] in ("}", "]"):
        before = text[:place].rstrip()
        return len(before) - 1 if before.endswith(",") else None
    return place if re.match(r",\s*[}\]]", text[place:]) else None
