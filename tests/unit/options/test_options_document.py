"""Help and documentation follow from the declarations."""

import re
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.families.sdxl.options import SdxlFullOptions
from library.options.document import help_text
from library.options.page import options_page
from library.options.spec import OptionGroup, ScriptOptions, ScriptText, group_classes, opt, options_of


@dataclass(frozen=True, kw_only=True)
class Pictures(OptionGroup):
    title: ClassVar[str] = "Pictures"

    width: int = opt(512, "Width.", unit="pixels", aliases=("wide",))
    ratio: tuple[float, ...] | None = opt(None, "Ratios.", metavar="R")
    mode: str = opt("a|b", "Way.", choices=("a|b", "c"))
    soon: bool = opt(False, "Comes.", later="the rest")
    old: bool = opt(False, "Was.")


@dataclass(frozen=True, kw_only=True)
class Script(ScriptOptions):
    pictures: Pictures = field(default_factory=Pictures)


TEXT: ScriptText = {"prog": "s.py", "description": "Does it.", "example": "s.py --width 3", "ignored": {"old": "gone"}}


def test_help_names_groups_units_defaults_and_the_example_at_the_end():
    lines = help_text(Script, **TEXT).splitlines()
    assert lines[0] == "usage: s.py [options]"
    assert "  --width, --wide N               Width. (pixels; default 512)" in lines
    assert "  --ratio R ...                   Ratios." in lines
    assert "  --soon                          Comes. [not available yet]" in lines
    assert "  --old                           Was. [no effect here]" in lines
    assert lines.index("Pictures:") < lines.index("Options from a file:")
    assert lines[-2:] == ["example:", "  s.py --width 3"]


def test_the_page_has_a_row_for_each_option():
    page = options_page([(Script, TEXT)], {})
    assert "| `--width`, `--wide` | whole number (pixels) | `512` | all | Width. |" in page
    assert "| `--mode` | `a\\|b`, `c` | `a\\|b` | all | Way. |" in page
    assert "| `--soon` | switch |  | all | *Not available yet (the rest).* Comes. |" in page
    assert "| `--old` | switch |  | all | *No effect (gone).* Was. |" in page


@pytest.mark.parametrize("script", [Sd3NetworkOptions, SdxlFullOptions])
def test_where_0_means_that_nothing_is_given_the_help_says_so(script):
    declared = {name: option.declared for name, option in options_of(script).items() if option.declared.zero_is_off}
    assert "max_train_epochs" in declared
    assert [name for name, each in declared.items() if not re.search(r"0 means|or 0, means", each.help)] == []


@dataclass(frozen=True, kw_only=True)
class WiderPictures(Pictures):
    mode: str = opt("c", "Way.", choices=("c",))
    depth: int = opt(1, "Depth.")


@dataclass(frozen=True, kw_only=True)
class WiderScript(Script):
    pictures: WiderPictures = field(default_factory=WiderPictures)


def test_what_scripts_share_is_one_row_and_what_differs_names_them():
    other: ScriptText = {**TEXT, "prog": "w.py", "ignored": {}}
    third: ScriptText = {**TEXT, "prog": "v.py", "ignored": {}}
    page = options_page([(Script, TEXT), (WiderScript, other), (WiderScript, third)], {"wide ones": ["w.py", "v.py"]})
    assert page.count("`--width`") == 1 and page.count("## Pictures") == 1
    assert "| `--mode` | `a\\|b`, `c` | `a\\|b` | s | Way. |\n| `--mode` | `c` | `c` | wide ones | Way. |" in page
    assert "| `--depth` | whole number | `1` | wide ones | Depth. |" in page
    assert "| `--old` | switch |  | all | *No effect for s (gone).* Was. |" in page
    assert "| `w.py` | wide ones | Does it. |" in page


def test_groups_that_a_script_leads_with_and_its_own_ones_come_first():
    @dataclass(frozen=True, kw_only=True)
    class Sounds(OptionGroup):
        title: ClassVar[str] = "Sounds"

        volume: int = opt(1, "Volume.")

    @dataclass(frozen=True, kw_only=True)
    class Louder(Script):
        sounds: Sounds = field(default_factory=Sounds)

    class Leading(Louder):
        leading: ClassVar[tuple[str, ...]] = ("pictures",)

    assert list(group_classes(Louder)) == ["sounds", "pictures", "config"]
    assert list(group_classes(Leading)) == ["pictures", "sounds", "config"]


def test_every_option_of_sd3_is_in_the_help_and_explained():
    text = help_text(Sd3NetworkOptions, **NETWORK_SCRIPT)
    assert text.isascii()
    for name, option in options_of(Sd3NetworkOptions).items():
        assert f"\n  --{name}" in text
        assert option.declared.help.endswith(".") and len(option.declared.help) > 3


def test_a_name_in_two_groups_is_a_mistake():
    @dataclass(frozen=True, kw_only=True)
    class Twice(Script):
        again: Pictures = field(default_factory=Pictures)

    with pytest.raises(TypeError, match="width"):
        options_of(Twice)
