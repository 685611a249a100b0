"""What a user wants a file to say of itself, given as one text: JSON, or KEY=VALUE,KEY=VALUE. Nothing of it is run."""

from __future__ import annotations

import json


def read_metadata(text: str) -> dict[str, str]:
    """The entries of such a text.

    Raises:
        ValueError: It is neither. The message continues the option's name.
    """
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f'is no JSON ({error}). Write {{"KEY": "VALUE"}}, or KEY=VALUE.') from None
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}
    entries = [entry.partition("=") for entry in text.split(",")]
    if wrong := [key for key, sign, _ in entries if not sign or not key.strip()]:
        raise ValueError(f'has no = in "{wrong[0]}". Write KEY=VALUE,KEY=VALUE, or JSON where values have commas.')
    return {key.strip(): value.strip() for key, _, value in entries}


def metadata_problem(text: str) -> str | None:
    """What is wrong with such a text; None where nothing is."""
    try:
        read_metadata(text)
    except ValueError as error:
        return str(error)
    return None
