"""Options as a page: the tables of docs/options.md, each option once, with the scripts that have it."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from library.options.document import default_text
from library.options.option import Option
from library.options.spec import OptionGroup, ScriptOptions, ScriptText, group_classes, group_options

Script = tuple[type[ScriptOptions], ScriptText]

_TYPES = {
    "int": "whole number",
    "float": "number",
    "str": "text",
    "path": "path",
    "int_or_float": "steps or share",
    "int_or_auto": "whole number or `auto`",
}
_TABLE_HEAD = "| option | value | default | scripts | meaning |\n| --- | --- | --- | --- | --- |"
_TOOL_TABLE_HEAD = "| option | value | default | meaning |\n| --- | --- | --- | --- |"
_ALL = "all"

_INTRODUCTION = """# Options

<!-- Written by tools/make_options_doc.py. Change the declarations (groups/, families/) instead. -->

An option is given on the command line (`--network_dim=16` or `--network_dim 16`) or in the TOML file of `--config_file`
(`network_dim = 16`). The command line goes before the file, the file before the default. In the file one level of
tables is allowed and means nothing; types are strict (no quotes around numbers); lists stand in square brackets, one
number may stand without. Write Windows paths in single quotes or with `/`. A switch that is true in the file cannot be
turned off on the command line. An empty text for a path means not given. Names cannot be shortened; an unknown name is
an error.

*Not available yet*: the option is known, and refused with a sentence. *No effect*: it is accepted with a warning.
Where scripts differ, an option has a row for each of its forms."""

_TOOLS_INTRODUCTION = """# Options of the tools

<!-- Written by tools/make_options_doc.py. Change the declarations instead. -->

The scripts in `finetune/` and `tools/` that come before a training. Names in capitals are arguments without a flag,
given in this order. Options are given as for the training scripts ([options.md](options.md)), in a `--config_file` too.
Every tool also has `--config_file`, `--output_config`, `--console_log_level`, `--console_log_file`,
`--console_log_simple`, `--debug` (shows the traceback of an error) and `--help`."""


@dataclass
class _Entry:
    """One form of an option.

    Attributes:
        scripts: Those that have it.
        reasons: {why it has no effect: the scripts where that is so}.
    """

    scripts: list[str] = field(default_factory=list)
    reasons: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def options_page(scripts: Sequence[Script], names: Mapping[str, Collection[str]]) -> str:
    """The page docs/options.md: a table for each group of options.

    Args:
        scripts: In the order in which they are listed.
        names: {what several scripts are called: they}.
    """
    everyone = [script["prog"] for _, script in scripts]
    words = {_ALL: set(everyone), **{name: set(some) for name, some in names.items()}}
    parts = [_INTRODUCTION, _scripts_table(scripts, words)]
    for title, entries in _collect(scripts).items():
        rows = [_row(cells, entry, words) for forms in entries.values() for cells, entry in forms.items()]
        parts += [f"## {title}", "\n".join([_TABLE_HEAD, *rows])]
    return "\n\n".join(parts) + "\n"


def tools_page(tools: Sequence[Script], known: Collection[type[OptionGroup]], familiar: type[ScriptOptions]) -> str:
    """The page docs/tool_options.md: a table for each tool.

    Args:
        tools: In the order in which they are listed.
        known: Groups that are left out: they are on the page of the training scripts.
        familiar: Tools that extend this take all options of a training too, which is said.
    """
    parts = [_TOOLS_INTRODUCTION]
    for options_class, script in tools:
        parts += [f"## {script['prog']}", textwrap.fill(script["description"], 120)]
        own = [group for group in group_classes(options_class).values() if group not in known]
        options = [option for group in own for option in group_options(group).values()]
        if issubclass(options_class, familiar):
            parts.append("It takes all options of a training too ([options.md](options.md)), and these of its own:")
        if options:
            parts.append("\n".join([_TOOL_TABLE_HEAD, *map(_tool_row, options)]))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """As Markdown shows it in a table: <CAPTION> would be taken for HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _tool_row(option: Option) -> str:
    flags, value, default, meaning = _cells(option)
    reason = option.declared.no_effect
    texts = (flags, value, default, f"*No effect ({reason}).* {meaning}" if reason else meaning)
    return "| " + " | ".join(_cell(text) for text in texts) + " |"


_Forms = dict[tuple[str, str, str, str], _Entry]  # by the cells of the row


def _collect(scripts: Sequence[Script]) -> dict[str, dict[str, _Forms]]:
    """{title of a group: {option: its forms}}, in the order of the first script that has it."""
    groups: dict[str, dict[str, _Forms]] = {}
    for options_class, script in scripts:
        listed = {group.title: group_options(group) for group in group_classes(options_class).values()}
        groups = {title: groups.get(title, {}) for title in _merged(groups, listed)}
        for title, options in listed.items():
            entries = {name: groups[title].get(name, {}) for name in _merged(groups[title], options)}
            for name, option in options.items():
                entry = entries[name].setdefault(_cells(option), _Entry())
                entry.scripts.append(script["prog"])
                if reason := option.declared.no_effect or script["ignored"].get(name):
                    entry.reasons[reason].append(script["prog"])
            groups[title] = entries
    return groups


def _merged(known: Iterable[str], new: Iterable[str]) -> list[str]:
    """Names of both, each new one behind the one that it follows."""
    names, place = list(known), 0
    for name in new:
        if name in names:
            place = names.index(name) + 1
        else:
            names.insert(place, name)
            place += 1
    return names


def _cells(option: Option) -> tuple[str, str, str, str]:
    """Flags, value, default, meaning."""
    declared = option.declared
    value = "switch" if option.kind == "flag" else _TYPES[option.kind]
    value += "".join(f", or `={word}`" for word in declared.words)
    if declared.choices:
        value = ", ".join(f"`{choice}`" for choice in declared.choices)
    if option.is_list:
        value = f"any number of: {value}"
    if declared.unit:
        value += f" ({declared.unit})"
    meaning = f"*Not available yet ({declared.later}).* {declared.help}" if declared.later else declared.help
    default = f"`{text}`" if (text := default_text(option)) else ""
    flags = (option.place,) if declared.is_positional else option.flags
    return ", ".join(f"`{flag}`" for flag in flags), value, default, meaning


def _row(cells: tuple[str, str, str, str], entry: _Entry, words: Mapping[str, set[str]]) -> str:
    flags, value, default, meaning = cells
    notes = []
    for reason, scripts in entry.reasons.items():
        where = "" if set(scripts) == set(entry.scripts) else f" for {_in_words(scripts, words)}"
        notes.append(f"*No effect{where} ({reason}).* ")
    texts = (flags, value, default, _in_words(entry.scripts, words), "".join(notes) + meaning)
    return "| " + " | ".join(_cell(text) for text in texts) + " |"


def _in_words(scripts: Collection[str], words: Mapping[str, set[str]]) -> str:
    """What they are called, or whom it leaves out, or else their names."""
    wanted = set(scripts)
    for name, some in words.items():
        if some == wanted:
            return name
    for name, some in words.items():
        if words[_ALL] - some == wanted and len(wanted) > 1:
            return f"{_ALL} but {name}"
    return ", ".join(_stem(script) for script in scripts)


def _stem(script: str) -> str:
    return script.removesuffix(".py")


def _scripts_table(scripts: Sequence[Script], words: Mapping[str, set[str]]) -> str:
    def names(prog: str) -> Iterator[str]:
        return (name for name, some in words.items() if prog in some and name != _ALL)

    rows = [
        f"| `{script['prog']}` | {', '.join(names(script['prog']))} | {script['description']} |"
        for _, script in scripts
    ]
    return "\n".join(["| script | is meant by | does |", "| --- | --- | --- |", *rows])
