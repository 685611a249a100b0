"""Parsing JSON so that nothing in it is silently lost, and every fault of it is one kind of error."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

_MOST_DIGITS = 4300  # of a whole number: Python's own limit


def parse_json(text: str, repeated: list[str]) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        repeated: Keys that an object has more than once are added here: the last would silently win.

    Raises:
        json.JSONDecodeError: It is not JSON, nested too deeply, or holds a number that is too long.
    """

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            repeated.extend(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
        return values

    try:
        return json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("Brackets nested too deeply", text, 0) from None
    except ValueError:
        number = re.search(rf"\d{{{_MOST_DIGITS + 1}}}", text)
        raise json.JSONDecodeError("Number too long", text, number.start() if number else 0) from None
