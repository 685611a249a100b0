"""`key=value` items of the command line: splitting, reading, and checking against what a class takes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from library.errors import OptionError


def split_key_values(items: Sequence[str] | None, flag: str) -> dict[str, str]:
    """Split "key=value" items at their first "=".

    Args:
        items: As given on the command line.
        flag: The option they belong to, for messages.

    Raises:
        OptionError: Lists every item without "=" and every key that is given twice.
    """
    result: dict[str, str] = {}
    problems = []
    for item in items or ():
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f'"{item}" has no "="' if not equals else f'"{item}" has no name before "="')
        elif key in result:
            problems.append(f"{key} is given twice")
        else:
            result[key] = value.strip()
    if problems:
        raise OptionError(f"{flag}: {'; '.join(problems)}. Write each argument as name=value.")
    return result


def parse_key_values(items: Sequence[str] | None, flag: str) -> dict[str, Any]:
    """Like `split_key_values`, with values read as Python literals.

    true and false count in any letter case; whatever is no literal is a text.
    """
    return {key: _literal(value) for key, value in split_key_values(items, flag).items()}


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def check_names(
    flag: str,
    owner: str,
    make: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    reserved: Mapping[str, str],
    takes_more: bool = False,
) -> None:
    """Refuse arguments that a class does not name in its signature.

    Args:
        flag: The option they were given with.
        owner: Name of the class, as the user knows it.
        make: The class.
        arguments: As given.
        reserved: Arguments that cannot be given here, and why.
        takes_more: `**kwargs` of the class are read by it. Where they are only swallowed, a slip would pass unseen.

    Raises:
        OptionError: Lists all of them, with the nearest name.
    """
    parameters = inspect.signature(make).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    is_open = takes_more and any(p.kind is p.VAR_KEYWORD for p in parameters)
    accepted = [name for name in named if name not in reserved]
    problems = []
    for key in arguments:
        if key in reserved:
            problems.append(f"{key} cannot be given here, {reserved[key]}")
        elif key not in accepted and not is_open:
            near = get_close_matches(key, accepted, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            problems.append(f"{owner} has no argument {key}{hint}")
    if problems:
        raise OptionError(f"{flag}: {'; '.join(problems)}. Known: {', '.join(accepted) or 'none'}.")


def one_line(fault: BaseException) -> str:
    """The first line of a message, without its full stop."""
    lines = str(fault).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(fault).__name__
