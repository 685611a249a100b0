"""Read the command line: flags and their values, with errors that name the usual slips.

The slips: a misspelt flag, a blank missing before a line break, typographic dashes and blanks from a web page, a path
with blanks but no quotes, a value after a switch. All problems are collected, not only the first.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from library.options.option import NOWHERE, Option, nearest_hint

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_OTHER_FLAG = re.compile(rf"(?P<dash>--|[{_DASHES}]{{1,2}}|(?<!\S)-)(?P<name>[A-Za-z]\w*)(?P<end>[=\s]|$)")
_LONG_ENOUGH = 4  # "my--v2" and "model--vae" are fair names; "fp16--sdpa" is a slip


@dataclass
class CommandLine:
    """What was read.

    Attributes:
        values: Typed values by option name; None where an empty text means "not given".
        problems: One sentence each.
        remarks: Warnings, one sentence each.
        repeated: Names of the options that were given more than once.
        loose: Arguments without a flag, for `fill_places`, each with the option that it follows, if there is one.
    """

    values: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    loose: list[tuple[str, Option | None]] = field(default_factory=list)


def read_command_line(
    argv: Sequence[str],
    options: Mapping[str, Option],
    prog: str,
    elsewhere: Mapping[str, str] = NOWHERE,
    of_programs: Mapping[str, str] = NOWHERE,
) -> CommandLine:
    """Read all arguments; those that are values by their place are kept for `fill_places`.

    Args:
        argv: The arguments after the script's name.
        options: The script's options by name.
        prog: Name of the script, for messages.
        elsewhere: {option of neighbouring scripts: what to do here instead}.
        of_programs: {flag without its hyphens that other programs give beside the options, which changes nothing: why}.
    """
    flags = {flag: option for option in options.values() for flag in option.flags}
    has_places = any(option.declared.is_positional for option in options.values())
    result = CommandLine()
    previous: Option | None = None
    position = 0
    while position < len(argv):
        token = argv[position]
        following = _values_after(argv, position + 1)
        position += 1
        name, equals, attached = token.partition("=")
        option = flags.get(name)
        if option is None and has_places and _is_loose(token):
            result.loose.append((token, previous))
            previous = None
            continue
        if option is None and _is_flag(name) and name[2:] in of_programs:
            result.remarks.append(f"{name} is no option and changes nothing: {of_programs[name[2:]]}.")
            position += 0 if equals else len(following[:1])
            previous = None
            continue
        if option is None:
            strays = [token, *takewhile(_is_loose, following)] if _is_loose(token) else [token]
            result.problems.append(_explain_stray(strays, flags, previous, prog, elsewhere))
            position += len(following) if _is_flag(token) and not equals else len(strays) - 1
            continue
        previous = option
        texts = [attached] if equals else following if option.is_list else following[:1]
        if option.kind == "flag":
            _set_switch(result, option, attached if equals else None)
            continue
        if not equals:
            position += len(texts)
        if not texts and not option.is_list:
            result.problems.append(f"{option.shown} needs a value: {option.wanted}.")
            continue
        _set_value(result, option, texts, flags)
    return result


def fill_places(line: CommandLine, options: Mapping[str, Option], in_file: Mapping[str, object], prog: str) -> None:
    """Give the arguments without a flag to the options that have a place, in the order of these.

    What has a value already, by its flag or in the file, has no place any more; so it does not matter in which order
    flags and arguments stand.

    Args:
        line: From `read_command_line`; values and problems are added.
        options: The script's options by name.
        in_file: Values of `--config_file`.
        prog: Name of the script, for messages.
    """
    flags = {flag: option for option in options.values() for flag in option.flags}
    free, taken = [], []
    for option in options.values():
        if option.name in line.values and option.declared.is_positional:
            taken.append(f"{option.place} is given by {option.flag}")
        elif in_file.get(option.name) is not None and option.declared.is_positional:
            taken.append(f"{option.place} is given in --config_file")
        elif option.declared.is_positional:
            free.append(option)
    for option, (token, _) in zip(free, line.loose, strict=False):
        _set_value(line, option, [token], flags)
    for previous, strays in _in_a_row(line.loose[len(free) :]):
        if taken:
            what = f"{_quoted(strays)} is one argument too many: {', '.join(taken)}."
            line.problems.append(f"{what} Leave one out, and quote values that have blanks.")
        else:
            line.problems.append(_explain_stray(strays, flags, previous or free[-1], prog, NOWHERE))


def _in_a_row(loose: Sequence[tuple[str, Option | None]]) -> list[tuple[Option | None, list[str]]]:
    """Arguments that nothing stands between, together, with the option before the first."""
    rows: list[tuple[Option | None, list[str]]] = []
    for token, previous in loose:
        if previous is None and rows:
            rows[-1][1].append(token)
        else:
            rows.append((previous, [token]))
    return rows


def _quoted(tokens: Sequence[str]) -> str:
    """The first, and how many follow: a shell makes one pattern many names."""
    return f"'{tokens[0]}'" + (f" (and {len(tokens) - 1} more after it)" if len(tokens) > 1 else "")


def _is_loose(token: str) -> bool:
    """Whether an argument that is no flag is none that was misspelt either."""
    return token[:1] not in f"-{_DASHES}" and not _is_line_end(token)


def _is_flag(token: str) -> bool:
    return re.match(r"--[A-Za-z]", token) is not None


def _values_after(argv: Sequence[str], start: int) -> list[str]:
    end = start
    while end < len(argv) and not _is_flag(argv[end]):
        end += 1
    return list(argv[start:end])


def _set_switch(result: CommandLine, option: Option, attached: str | None) -> None:
    if attached in option.declared.words:
        result.values[option.name] = attached
        return
    if attached is not None:
        words = "".join(f", take {option.flag}={word}" for word in option.declared.words)
        result.problems.append(
            f"{option.flag} is a switch and takes no{' such' if words else ''} value: leave out '={attached}'{words}, "
            "or leave out the whole option to turn it off."
        )
        return
    result.values[option.name] = True


def _set_value(result: CommandLine, option: Option, texts: Sequence[str], flags: Mapping[str, Option]) -> None:
    if option.name in result.values:
        result.repeated.append(option.name)
    problems = list(_value_problems(option, texts, flags))
    if problems:
        result.problems += problems
        return
    try:
        if option.is_list:
            result.values[option.name] = tuple(option.from_text(text) for text in texts if text.strip()) or None
        else:
            result.values[option.name] = option.from_text(texts[0])
    except ValueError as fault:
        result.problems.append(f"{option.shown} {fault}")


def _value_problems(option: Option, texts: Sequence[str], flags: Mapping[str, Option]) -> Iterator[str]:
    for text in texts:
        if text and _is_line_end(text) and (option.is_list or (option.kind != "str" and text.strip())):
            yield _explain_line_end(text)
        elif found := _find_other_flag(option, text, flags):
            yield found


def _find_other_flag(option: Option, text: str, flags: Mapping[str, Option]) -> str | None:
    """A sentence if the value swallowed another option of the script."""
    for match in _OTHER_FLAG.finditer(text):
        name = f"--{match['name']}"
        is_glued = match.start() > 0 and not text[match.start() - 1].isspace()
        if name not in flags or (option.declared.is_free_text and not is_glued):
            continue
        is_only_a_name = option.kind in ("str", "path") and not match["end"] and len(match["name"]) < _LONG_ENOUGH
        if is_only_a_name or (option.kind == "path" and os.path.exists(text)):
            continue
        before = text[: match.start()].rstrip()
        after = name + text[match.end("name") :]
        dash = "" if match["dash"] == "--" else f" {match['dash']} is not two plain hyphens."
        if not before:
            return f"{option.flag} needs a value, but '{text}' follows, which looks like an option.{dash}"
        return (
            f"{option.flag}: a space is missing (often before a line break) in '{text}'. "
            f"These are two options: {option.flag}={before} and {after}.{dash}"
        )
    return None


def _explain_stray(
    tokens: Sequence[str], flags: Mapping[str, Option], previous: Option | None, prog: str, elsewhere: Mapping[str, str]
) -> str:
    token, what = tokens[0], _quoted(tokens)
    if _is_line_end(token):
        return _explain_line_end(token)
    name = token.partition("=")[0]
    dashed = re.match(rf"[-{_DASHES}]+([A-Za-z]\w*)$", name)
    if dashed and f"--{dashed.group(1)}" in flags:
        return f"{name} does not begin with two plain hyphens{_odd_characters(name)}: write --{dashed.group(1)}."
    if _is_flag(token):
        return _explain_unknown(name, flags, prog, elsewhere)
    if previous is not None and previous.declared.is_positional:
        return f"{what} is one argument too many. If it is part of {previous.place}, put that in quotes."
    if previous is None:
        such = next((f", such as {flag}" for flag, option in flags.items() if option.kind == "path"), "")
        return f"{what} belongs to no option: every option of {prog} begins with two hyphens{such}."
    if token in previous.declared.words:
        return f"{what} belongs to no option: write {previous.flag}={token}, without a space."
    if previous.kind == "flag":
        return f"{what} belongs to no option: {previous.flag} is a switch and takes no value."
    if previous.is_list:
        return f"{what} belongs to no option. Write several values without =: {previous.flag} FIRST SECOND."
    return f"{what} belongs to no option. If it is part of the value of {previous.flag}, put the value in quotes."


def _explain_unknown(name: str, flags: Mapping[str, Option], prog: str, elsewhere: Mapping[str, str]) -> str:
    first = re.split(r"\s", name, maxsplit=1)[0]
    if first != name and first in flags:
        return (
            f"'{name}' is one argument, but should be {first} and its value"
            f"{_odd_characters(name)}: type a plain space or = between them."
        )
    before, glue, after = name[2:].partition("--")
    if glue and f"--{before}" in flags:
        return f"'{name}' is two options without a space between them: --{before} and --{after}."
    if name[2:] in elsewhere:
        return f"{name} is not an option of {prog}: {elsewhere[name[2:]]}"
    near = nearest_hint(name[2:], [flag[2:] for flag in flags], "--")
    return f"{name} is not an option of {prog}.{near or ' See --help.'}"


def _odd_characters(text: str) -> str:
    """Name of the first character that is no ASCII, in brackets with a leading blank."""
    odd = next((character for character in text if ord(character) > 127), None)
    if odd is None:
        return ""
    return f" (it has U+{ord(odd):04X}, {unicodedata.name(odd, 'a special character').lower()})"


def _is_line_end(token: str) -> bool:
    return token.strip() in ("", "\\", "^", "`")


def _explain_line_end(token: str) -> str:
    return (
        f"A lone {token.strip() or 'blank'} stands among the options. To go on in the next line, end the line with \\ "
        "(Windows: ^ in cmd, ` in PowerShell) and nothing after it."
    )
