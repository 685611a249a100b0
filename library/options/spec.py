"""Options: declared once as frozen dataclasses; parser, TOML file, checks, help and documentation follow from that.

A group is a frozen dataclass whose fields are made by `opt`. A script's options are a frozen dataclass whose fields
are groups. The command line goes before `--config_file`, which goes before the default. After parsing nothing changes:
a derived value is a property of its group. Nothing here imports torch.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar

from library.errors import OptionError
from library.options.command_line import fill_places, read_command_line
from library.options.config_file import config_path, read_config_file, write_config_file
from library.options.option import Declared, Kind, Option

_KINDS: dict[object, Kind] = {bool: "flag", int: "int", float: "float", str: "str", Path: "path"}
_MIXED_KINDS: dict[frozenset[Any], Kind] = {
    frozenset({int, float}): "int_or_float",
    frozenset({int, str}): "int_or_auto",
}


def opt(
    default: object,
    help: str,
    *,
    unit: str | None = None,
    choices: Sequence[str | int] | None = None,
    aliases: Sequence[str] = (),
    nargs: str | None = None,
    kind: Kind | None = None,
    later: str | None = None,
    no_effect: str | None = None,
    metavar: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    secret: bool = False,
    free_text: bool = False,
    zero_is_off: bool = False,
    words: Sequence[str] = (),
    positional: bool = False,
) -> Any:
    """Declare an option as a field of a group. The field's name is the flag, its annotation the type.

    Args:
        default: The value if nothing is given.
        help: One sentence.
        unit: Unit or range, for help and documentation.
        choices: The values that are allowed.
        aliases: Other names of the flag; one with a dash, such as "-s", is as it is typed.
        nargs: "*" for any number of values; implied by a tuple annotation.
        kind: How a value is read, where the annotation does not say it.
        later: What is missing, for an option that is known but not available yet: any other value than the default is
            an error that says so.
        no_effect: Why the option changes nothing, in no family: a warning if it is given.
        metavar: Name of the value in the help.
        minimum: Smallest allowed number.
        maximum: Greatest allowed number.
        above: Numbers must be greater than this.
        secret: Never written or shown.
        free_text: The value is prose and may mention flags.
        zero_is_off: 0 means not given.
        words: Values that a switch takes beside true and false, attached with `=`.
        positional: The value is given by its place among the arguments, in the order of declaration; by the flag or in
            `--config_file` it is too, and then has no place. Needed if the default is None.
    """
    if nargs not in (None, "*"):
        raise ValueError(f"nargs must be None or '*', got {nargs!r}")
    declared = Declared(
        help=help,
        unit=unit,
        choices=tuple(choices or ()),
        aliases=tuple(aliases),
        nargs=nargs,
        kind=kind,
        later=later,
        no_effect=no_effect,
        metavar=metavar,
        minimum=minimum,
        maximum=maximum,
        above=above,
        is_secret=secret,
        is_free_text=free_text,
        zero_is_off=zero_is_off,
        words=tuple(words),
        is_positional=positional,
    )
    return field(default=default, repr=not secret, metadata={"option": declared})


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Options that belong together. Ranges, choices and what is not available yet are checked here."""

    title: ClassVar[str] = "Options"

    def __post_init__(self) -> None:
        problems = list(_value_problems(self)) or list(self.check())
        if problems:
            raise OptionError(" ".join(problems))

    def check(self) -> Iterator[str]:
        """Sentences about options of this group that do not go together. Values are single-handedly right by then."""
        return iter(())

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of options that change nothing beside the other ones; told if they are not the default."""
        return iter(())

    def remarks(self) -> Iterator[str]:
        """Further warnings, one line each."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(OptionGroup):
    """Options from a file."""

    title: ClassVar[str] = "Options from a file"

    config_file: Path | None = opt(
        None,
        "TOML file with options, named as here; .toml is appended if missing. The command line goes before the file, "
        "but a switch that is true in the file cannot be turned off on the command line.",
    )
    output_config: bool = opt(False, "Write the options that differ from their defaults to --config_file, and end.")


@dataclass(frozen=True, kw_only=True)
class ScriptOptions:
    """All options of a script: subclasses add groups as fields.

    Attributes:
        config: Where options were read from.
        given: Names of the options that the command line or the file set.
        warnings: One line each, for the log.
        required: Names of options that must be given.
        unused: {option: reason} of options that are known, so that commands can be shared between scripts, and
            dropped before anything is checked; those given are named in a warning.
        preset: Values that the script itself sets, whatever is given.
        elsewhere: {option that only neighbouring scripts have: what to do here instead}, for the error about it.
        of_programs: {key that programs with windows write beside the options, which changes nothing: why}, for the
            warning about it in a `--config_file`.
        typed_by_programs: Those of them that are taken on the command line too.
        leading: Fields of the groups that come first in help and documentation.
    """

    config: ConfigOptions = field(default_factory=ConfigOptions)
    given: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()

    required: ClassVar[tuple[str | tuple[str, ...], ...]] = ()  # of several in one place any one will do
    unused: ClassVar[Mapping[str, str]] = {}
    preset: ClassVar[Mapping[str, object]] = {}
    elsewhere: ClassVar[Mapping[str, str]] = {}
    of_programs: ClassVar[Mapping[str, str]] = {}
    typed_by_programs: ClassVar[frozenset[str]] = frozenset()
    leading: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        values = {name: getattr(group, name) for group in self.groups() for name in group.__dataclass_fields__}
        problems = [*_missing(type(self), values), *self.check()]
        if problems:
            raise OptionError(" ".join(problems))

    def groups(self) -> Iterator[OptionGroup]:
        """The groups, in the order of declaration."""
        return (getattr(self, name) for name in group_classes(type(self)))

    def values(self) -> dict[str, Any]:
        """Every option by its name."""
        return {item.name: getattr(group, item.name) for group in self.groups() for item in fields(group)}

    def check(self) -> Iterator[str]:
        """Sentences about options of different groups that do not go together."""
        return iter(())

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of options that change nothing beside those of other groups."""
        return iter(())

    def remarks(self) -> Iterator[str]:
        """Further warnings about options of different groups, one line each."""
        return iter(())


class ScriptText(TypedDict):
    """What a script says of itself: the keyword arguments of `parse_options` and `run_script`."""

    prog: str
    description: str
    example: str
    ignored: Mapping[str, str]


class Finished(Exception):
    """The command line asked for something else than a run, and that is done. The message is for stdout."""


AnyScriptOptions = TypeVar("AnyScriptOptions", bound=ScriptOptions)


def parse_options(
    options_class: type[AnyScriptOptions],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    example: str,
    ignored: Mapping[str, str] | None = None,
) -> AnyScriptOptions:
    """Read command line and `--config_file` into checked, frozen options.

    Args:
        options_class: The script's options.
        argv: Arguments after the script's name.
        prog: Name of the script.
        description: What the script does, for `--help`.
        example: One command, for `--help`.
        ignored: {option: reason} of options that have no effect for this family; those given make one warning.

    Raises:
        OptionError: Something is wrong; everything that is wrong at this stage is in the message.
        Finished: `--help` or `--output_config` was given.
    """
    options = options_of(options_class)
    if any(token in ("--help", "-h") for token in argv):
        from library.options.document import help_text

        raise Finished(help_text(options_class, prog=prog, description=description, example=example, ignored=ignored))
    typed = {key: why for key, why in options_class.of_programs.items() if key in options_class.typed_by_programs}
    line = read_command_line(argv, options, prog, options_class.elsewhere, typed)
    in_file, problems, remarks = _config_file_values(options_class, line.values, options)
    fill_places(line, options, in_file, prog)
    values = {**in_file, **line.values}
    if line.problems or problems:
        raise OptionError(" ".join([*line.problems, *problems]))
    if values.get("output_config"):
        raise Finished(_output_config(values, options))
    given = frozenset(name for name, value in values.items() if value is not None)
    used = {name: value for name, value in values.items() if name not in options_class.unused}
    groups = _build_groups(options_class, {**used, **options_class.preset})
    options_of_groups = options_class(**groups, given=given)
    repeated = _repeat_warnings(line.repeated, values)
    warnings = [*dict.fromkeys(line.remarks), *remarks, *warnings_about(options_of_groups, ignored or {}), *repeated]
    return replace(options_of_groups, warnings=tuple(warnings))


def warnings_about(options: ScriptOptions, ignored: Mapping[str, str]) -> Iterator[str]:
    """One line for everything without effect, then the remarks of the groups and of the script.

    Args:
        ignored: {option: reason} of options that have no effect for this family.
    """
    reasons = {name: reason for group in options.groups() for name, reason in group.without_effect()}
    reasons |= {**dict(options.without_effect()), **ignored}
    for name, option in options_of(type(options)).items():
        if option.declared.no_effect:
            reasons[name] = option.declared.no_effect
    yield from line_without_effect(options, {**reasons, **options.unused})
    for group in options.groups():
        yield from group.remarks()
    yield from options.remarks()


def line_without_effect(options: ScriptOptions, reasons: Mapping[str, str]) -> Iterator[str]:
    """A line about those of some options that are given, or none.

    Args:
        reasons: {option: why it has no effect}.
    """
    values = options.values()
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for name in options.unused:
        if name in reasons and name in options.given:
            by_reason[reasons[name]].append(f"--{name}")
    for name, option in options_of(type(options)).items():
        if name in reasons and name not in options.unused and values[name] != option.default:
            by_reason[reasons[name]].append(option.flag)
    if by_reason:
        parts = [f"{', '.join(flags)} ({reason})" for reason, flags in by_reason.items()]
        yield f"Options without effect here: {'; '.join(parts)}."


def group_classes(options_class: type[ScriptOptions]) -> Mapping[str, type[OptionGroup]]:
    """The groups of a script by field name: the leading ones, then the more a group is the script's own."""
    hints = typing.get_type_hints(options_class)
    age = {name: place for place, base in enumerate(options_class.__mro__) for name in inspect.get_annotations(base)}
    leading = options_class.leading
    return {
        item.name: hints[item.name]
        for item in sorted(fields(options_class), key=lambda item: (item.name not in leading, age[item.name]))
        if isinstance(hints[item.name], type) and issubclass(hints[item.name], OptionGroup)
    }


def options_of(options_class: type[ScriptOptions]) -> Mapping[str, Option]:
    """Every option of a script by name, in the order of declaration."""
    options: dict[str, Option] = {}
    for group in group_classes(options_class).values():
        for name, option in group_options(group).items():
            if name in options:
                raise TypeError(f"{name} is declared in {options[name].group} and in {option.group}")
            options[name] = option
    return options


def group_options(group: type[OptionGroup]) -> Mapping[str, Option]:
    """The options of a group by name."""
    return _read_group(typing.cast(Any, group))


@cache
def _read_group(group: Any) -> Mapping[str, Option]:
    hints = typing.get_type_hints(group)
    options = {}
    for item in fields(group):
        declared: Declared = item.metadata["option"]
        kind, is_list = _kind_of(hints[item.name])
        options[item.name] = Option(
            name=item.name,
            kind=declared.kind or kind,
            default=item.default,
            is_list=is_list or declared.nargs == "*",
            group=group.title,
            declared=declared,
        )
    return options


def _kind_of(hint: Any) -> tuple[Kind, bool]:
    """Kind of a value and whether it is a list, from an annotation such as `int`, `Path | None`, `tuple[str, ...]`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        mixed: Kind | None = _MIXED_KINDS.get(frozenset(members))
        return (mixed, False) if mixed else _kind_of(members[0])
    if typing.get_origin(hint) is tuple:
        return _kind_of(typing.get_args(hint)[0])[0], True
    return _KINDS[hint], False


def _config_file_values(
    options_class: type[ScriptOptions], line_values: Mapping[str, object], options: Mapping[str, Option]
) -> tuple[dict[str, object], list[str], list[str]]:
    given = line_values.get("config_file")
    if not isinstance(given, Path) or line_values.get("output_config"):
        return {}, [], []
    try:
        return read_config_file(config_path(given), options, options_class.elsewhere, options_class.of_programs)
    except OptionError as fault:
        return {}, [str(fault)], []


def _output_config(values: Mapping[str, object], options: Mapping[str, Option]) -> str:
    given = values.get("config_file")
    if not isinstance(given, Path):
        raise OptionError("--output_config needs --config_file, the path to write to.")
    path = config_path(given)
    write_config_file(path, values, options)
    return f"Options written to {path}"


def _build_groups(options_class: type[ScriptOptions], values: Mapping[str, object]) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    problems = list(_missing(options_class, values))
    for field_name, group in group_classes(options_class).items():
        own = {name: values[name] for name in group_options(group) if values.get(name) is not None}
        try:
            groups[field_name] = group(**own)
        except OptionError as fault:
            problems.append(str(fault))
    if problems:
        raise OptionError(" ".join(problems))
    return groups


def _missing(options_class: type[ScriptOptions], values: Mapping[str, object]) -> Iterator[str]:
    options = options_of(options_class)
    places = [name for name, option in options.items() if option.declared.is_positional and option.default is None]
    names_of = [(name,) if isinstance(name, str) else name for name in (*places, *options_class.required)]
    choices = list(dict.fromkeys(names_of))
    absent = [names for names in choices if all(values.get(name) is None for name in names)]
    single = [options[names[0]].shown for names in absent if len(names) == 1]
    if single:
        yield f"{', '.join(single)} {'is' if len(single) == 1 else 'are'} needed."
    for names in absent:
        if len(names) > 1:
            yield f"One of {', '.join(options[name].shown for name in names)} is needed."


def _value_problems(group: OptionGroup) -> Iterator[str]:
    later: defaultdict[str, list[str]] = defaultdict(list)
    for name, option in group_options(type(group)).items():
        value = getattr(group, name)
        if option.declared.later and value != option.default:
            later[option.declared.later].append(option.flag)
        elif found := option.problem(value):
            yield f"{option.flag} {found}"
    for reason, flags in later.items():
        yield f"{', '.join(flags)}: not available yet ({reason})."


def _repeat_warnings(repeated: Sequence[str], values: Mapping[str, object]) -> Iterator[str]:
    for name in dict.fromkeys(repeated):
        yield f"--{name} was given more than once: the last one counts."
