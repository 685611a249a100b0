"""Options of tools that serve every family of models: those of all, and those of the one that it turns out to be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, TypeVar, cast

from library.families.sd.options import IGNORED as SD_IGNORED
from library.families.sd.options import SdScriptOptions
from library.families.sd3.options import IGNORED as SD3_IGNORED
from library.families.sd3.options import Sd3Options, Sd3ScriptOptions
from library.families.sdxl.options import IGNORED as SDXL_IGNORED
from library.families.sdxl.options import SdxlOptions, SdxlScriptOptions
from library.options.groups.scripts import NetworkScriptOptions, TrainingScriptOptions
from library.options.groups.tools import FamilyChoiceOptions
from library.options.spec import OptionGroup, group_classes, line_without_effect


@dataclass(frozen=True)
class ToolFamily:
    """A family as a tool sees it.

    Attributes:
        title: As a sentence calls its models.
        kinds: Names of the kinds of files that it takes, as `library/families/detect.py` tells them.
        options: What its scripts share.
        ignored: {option: reason} of those that it does not know.
        own_group: Options that no other family has.
    """

    title: str
    kinds: Collection[str]
    options: type[TrainingScriptOptions]
    ignored: Mapping[str, str]
    own_group: type[OptionGroup] | None = None


FAMILIES: Mapping[str, ToolFamily] = {
    "sd": ToolFamily("Stable Diffusion 1.x and 2.x", ("sd1", "sd2"), SdScriptOptions, SD_IGNORED),
    "sdxl": ToolFamily("SDXL", ("sdxl",), SdxlScriptOptions, SDXL_IGNORED, SdxlOptions),
    "sd3": ToolFamily("SD3 and SD3.5", ("sd3", "sd3_diffusers"), Sd3ScriptOptions, SD3_IGNORED, Sd3Options),
}


@dataclass(frozen=True, kw_only=True)
class AnyFamilyOptions(NetworkScriptOptions):
    """The options of all scripts that train a network, so that each of their commands can be copied.

    Attributes:
        tells_ignored: Whether options that the family ignores are named in a warning.
    """

    family: FamilyChoiceOptions = field(default_factory=FamilyChoiceOptions)
    sdxl: SdxlOptions = field(default_factory=SdxlOptions)
    sd3: Sd3Options = field(default_factory=Sd3Options)

    tells_ignored: ClassVar[bool] = True


AnyToolOptions = TypeVar("AnyToolOptions", bound=AnyFamilyOptions)


def options_of_family(options: AnyToolOptions, name: str) -> AnyToolOptions:
    """The same options with the checks and defaults of one family.

    Args:
        options: As they were read.
        name: A key of `FAMILIES`.

    Raises:
        OptionError: They do not go with the family.
    """
    groups = {field_name: getattr(options, field_name) for field_name in group_classes(type(options))}
    own: AnyToolOptions = _joined(cast(Any, type(options)), name)(
        **groups, given=options.given, warnings=tuple(_lines(options, name))
    )
    return own


@cache
def _joined(tool: Any, name: str) -> Any:
    """A class of options that is of the tool and of the family."""
    return dataclass(frozen=True, kw_only=True)(type(tool.__name__, (FAMILIES[name].options, tool), {}))


def _lines(options: AnyFamilyOptions, name: str) -> Iterator[str]:
    """What can only be told when the family is known."""
    reasons: dict[str, str] = {}
    for other in FAMILIES.values():
        if other is not FAMILIES[name] and other.own_group is not None:
            reasons |= {item.name: f"for {other.title}" for item in fields(other.own_group)}
    if options.tells_ignored:
        reasons |= FAMILIES[name].ignored
    yield from line_without_effect(options, {key: why for key, why in reasons.items() if key not in options.unused})
