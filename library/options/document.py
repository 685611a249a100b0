"""Options as text: `--help`, and the tables of docs/options.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from library.options.option import Option
from library.options.spec import ScriptOptions, ScriptText, group_classes, group_options

_WIDTH = 110
_INDENT = 34
_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "path": "PATH", "int_or_float": "N|X|X%", "int_or_auto": "N|auto"}
_TYPES = {
    "int": "whole number",
    "float": "number",
    "str": "text",
    "path": "path",
    "int_or_float": "steps or share",
    "int_or_auto": "whole number or `auto`",
}


def help_text(
    options_class: type[ScriptOptions],
    *,
    prog: str,
    description: str,
    example: str,
    ignored: Mapping[str, str] | None = None,
) -> str:
    """The text of `--help`: options by group, one example at the end."""
    lines = [f"usage: {prog} [options]", "", *_wrap(description), ""]
    lines += [_help_entry("-h, --help", "Show this text and end.")]
    for group in group_classes(options_class).values():
        lines += ["", f"{group.title}:"]
        for option in group_options(group).values():
            lines.append(_help_entry(_usage(option), " ".join(_meaning(option, ignored or {}))))
    lines += ["", "example:"]
    lines += _wrap(example, "  ", "    ")
    return "\n".join(lines)


def options_page(scripts: Sequence[tuple[type[ScriptOptions], ScriptText]]) -> str:
    """The page docs/options.md: a table for each group of the first script, and of the others what is different."""
    parts = [_INTRODUCTION]
    first: dict[str, str] = {}
    for options_class, script in scripts:
        rows = _rows(options_class, script)
        own = {name: row for name, row in rows.items() if first.get(name) != row}
        parts += [f"## {script['prog']}", script["description"]]
        if first:
            left_out = ", ".join(f"`--{name}`" for name in first if name not in rows)
            parts.append(f"Options are those of {scripts[0][1]['prog']}, but for these. There is no {left_out}.")
        for group in group_classes(options_class).values():
            if listed := [own[name] for name in group_options(group) if name in own]:
                parts += [f"### {group.title}", "\n".join([_TABLE_HEAD, *listed])]
        first = first or rows
    return "\n\n".join(parts) + "\n"


def _rows(options_class: type[ScriptOptions], script: ScriptText) -> dict[str, str]:
    """{option: its row in a table}."""
    options = (option for group in group_classes(options_class).values() for option in group_options(group).values())
    return {option.name: _row(option, script["ignored"]) for option in options}


_TABLE_HEAD = "| option | value | default | meaning |\n| --- | --- | --- | --- |"

_INTRODUCTION = """# Options

<!-- Written by tools/make_options_doc.py. Change the declarations in library/options/groups/ instead. -->

An option is given on the command line (`--network_dim=16` or `--network_dim 16`) or in the TOML file of `--config_file`
(`network_dim = 16`). The command line goes before the file, the file before the default. In the file one level of
tables is allowed and means nothing; types are strict (no quotes around numbers); lists stand in square brackets. Write
Windows paths in single quotes or with `/`. A switch that is true in the file cannot be turned off on the command line.
An empty text for a path means not given. Names cannot be shortened; an unknown name is an error.

*Not available yet*: the option is known, and refused with a sentence. *No effect*: it is accepted with a warning."""


def _usage(option: Option) -> str:
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
    notes = [declared.unit or "", f"default {default}" if (default := _default(option)) else ""]
    if any(notes):
        yield f"({'; '.join(note for note in notes if note)})"
    yield from _status(option, ignored)


def _status(option: Option, ignored: Mapping[str, str]) -> Iterator[str]:
    if option.declared.later:
        yield "[not available yet]"
    elif option.declared.no_effect or option.name in ignored:
        yield "[no effect here]"


def _default(option: Option) -> str:
    """The default as it would be typed; empty where there is none."""
    if option.default in (None, "") or option.kind == "flag":
        return ""
    return f"{option.default:g}" if option.kind == "float" else str(option.default)


def _row(option: Option, ignored: Mapping[str, str]) -> str:
    declared = option.declared
    value = "switch" if option.kind == "flag" else _TYPES[option.kind]
    value += "".join(f", or `={word}`" for word in declared.words)
    if declared.choices:
        value = ", ".join(f"`{choice}`" for choice in declared.choices)
    if option.is_list:
        value = f"any number of: {value}"
    if declared.unit:
        value += f" ({declared.unit})"
    meaning = declared.help
    if declared.later:
        meaning = f"*Not available yet ({declared.later}).* {meaning}"
    elif reason := declared.no_effect or ignored.get(option.name):
        meaning = f"*No effect ({reason}).* {meaning}"
    default = f"`{text}`" if (text := _default(option)) else ""
    names = ", ".join(f"`{flag}`" for flag in option.flags)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (names, value, default, meaning)) + " |"
