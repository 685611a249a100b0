"""Options as text: `--help`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from library.options.option import Option
from library.options.spec import ScriptOptions, group_classes, group_options, options_of

_WIDTH = 110
_INDENT = 34
_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "path": "PATH", "int_or_float": "N|X|X%", "int_or_auto": "N|auto"}


def help_text(
    options_class: type[ScriptOptions],
    *,
    prog: str,
    description: str,
    example: str,
    ignored: Mapping[str, str] | None = None,
) -> str:
    """The text of `--help`: options by group, one example at the end."""
    lines = [f"usage: {' '.join([prog, *_places(options_class)])} [options]", "", *_wrap(description), ""]
    lines += [_help_entry("-h, --help", "Show this text and end.")]
    for group in group_classes(options_class).values():
        lines += ["", f"{group.title}:"]
        for option in group_options(group).values():
            lines.append(_help_entry(_usage(option), " ".join(_meaning(option, ignored or {}))))
    lines += ["", "example:"]
    lines += _wrap(example, "  ", "    ")
    return "\n".join(lines)


def _places(options_class: type[ScriptOptions]) -> Iterator[str]:
    for option in options_of(options_class).values():
        if option.declared.is_positional:
            yield option.place if option.default is None else f"[{option.place}]"


def _usage(option: Option) -> str:
    if option.declared.is_positional:
        return option.place
    name = ", ".join(option.flags)
    if option.kind == "flag":
        return name + "".join(f"[={word}]" for word in option.declared.words)
    value = option.declared.metavar or _METAVARS[option.kind]
    if option.declared.choices:
        value = "NAME" if option.kind == "str" else "N"
    return f"{name} {value} ..." if option.is_list else f"{name} {value}"


def _wrap(text: str, first: str = "", following: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _help_entry(usage: str, text: str) -> str:
    first = f"  {usage}"
    indent = " " * _INDENT
    lines = _wrap(text, indent, indent)
    if len(first) + 2 > _INDENT:
        return "\n".join([first, *lines])
    return "\n".join([first.ljust(_INDENT) + lines[0][_INDENT:], *lines[1:]])


def _meaning(option: Option, ignored: Mapping[str, str]) -> Iterator[str]:
    """Sentences about an option for the help."""
    declared = option.declared
    yield declared.help
    if declared.choices:
        yield f"One of {', '.join(map(str, declared.choices))}."
    notes = [declared.unit or "", f"default {default}" if (default := default_text(option)) else ""]
    if any(notes):
        yield f"({'; '.join(note for note in notes if note)})"
    yield from _status(option, ignored)


def _status(option: Option, ignored: Mapping[str, str]) -> Iterator[str]:
    if option.declared.later:
        yield "[not available yet]"
    elif option.declared.no_effect or option.name in ignored:
        yield "[no effect here]"


def default_text(option: Option) -> str:
    """The default as it would be typed; empty where there is none."""
    if option.default in (None, "") or option.kind == "flag":
        return ""
    return f"{option.default:g}" if option.kind == "float" else str(option.default)
