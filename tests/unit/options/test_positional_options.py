"""Options that are given by their place among the arguments."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from library.errors import OptionError
from library.options.groups import CommonOptions
from library.options.spec import Finished, OptionGroup, opt, parse_options


@dataclass(frozen=True, kw_only=True)
class CopyGroup(OptionGroup):
    """From and to."""

    source: Path | None = opt(None, "What is read.", positional=True)
    copies: int = opt(1, "How many.")
    target: Path | None = opt(None, "What is written.", positional=True)
    mode: str = opt("plain", "How.", positional=True)
    quick: bool = opt(False, "Do it quickly.")


@dataclass(frozen=True, kw_only=True)
class CopyOptions(CommonOptions):
    """Options of a script with places."""

    copy: CopyGroup = field(default_factory=CopyGroup)


def parse(*argv: str) -> CopyGroup:
    return parse_options(CopyOptions, list(argv), prog="copy.py", description="Copy.", example="copy.py a b").copy


def error_of(*argv: str) -> str:
    with pytest.raises(OptionError) as caught:
        parse(*argv)
    return str(caught.value)


@pytest.mark.parametrize(
    "argv",
    [
        ("a b", "c", "--copies", "3", "--quick"),
        ("--copies=3", "a b", "--quick", "c"),
        ("--quick", "--source", "a b", "--copies", "3", "c"),
        ("--quick", "c", "--source", "a b", "--copies", "3"),
        ("a b", "--copies", "3", "--quick", "--target", "c"),
    ],
)
def test_places_are_filled_in_order_around_flags(argv):
    copy = parse(*argv)
    assert (copy.source, copy.target, copy.copies, copy.quick, copy.mode) == (Path("a b"), Path("c"), 3, True, "plain")


def test_a_place_with_a_default_may_stay_empty_or_be_filled():
    assert parse("a", "b").mode == "plain"
    assert parse("a", "b", "other").mode == "other"


def test_what_is_missing_is_called_by_its_place():
    assert error_of("a") == "TARGET is needed."
    assert error_of() == "SOURCE, TARGET are needed."


def test_what_is_missing_is_told_once():
    from library.loras.options.looking import CHECK_LORA_SCRIPT, CheckLoraOptions

    with pytest.raises(OptionError, match=r"^FILE is needed\.$"):
        parse_options(CheckLoraOptions, [], **CHECK_LORA_SCRIPT)


def test_one_argument_too_many_is_told():
    assert "'d' is one argument too many. If it is part of MODE" in error_of("a", "b", "c", "d")


@pytest.mark.parametrize("argv", [("a", "b", "c", "--target", "d"), ("--target", "d", "a", "b", "c")])
def test_no_argument_is_dropped_where_a_flag_has_its_place(argv):
    assert "'c' is one argument too many: TARGET is given by --target. Leave one out" in error_of(*argv)


def test_arguments_in_a_row_are_one_problem():
    several = error_of("a", "b", "c", "d", "e", "--quick", "f", "g", "h")
    assert several.count("one argument too many") == several.count("belongs to no option") == 1
    assert "'d' (and 1 more after it) is one" in several and "'f' (and 2 more after it) belongs" in several


def test_an_argument_behind_an_option_is_part_of_its_value():
    assert "'d' belongs to no option: --quick is a switch" in error_of("a", "b", "c", "--quick", "d")


def test_a_misspelt_flag_is_no_place():
    assert "--quik is not an option of copy.py. Did you mean --quick?" in error_of("a", "b", "--quik")
    assert "-quick does not begin with two plain hyphens" in error_of("a", "b", "-quick")


def test_a_place_comes_from_the_file_too(tmp_path):
    file = tmp_path / "copy.toml"
    file.write_text('source = "a"\ntarget = "b"\n', encoding="utf-8")
    assert parse("--config_file", str(file)).target == Path("b")


def test_what_the_file_gives_has_no_place(tmp_path):
    file = tmp_path / "copy.toml"
    file.write_text('source = "a"\nmode = "other"\n', encoding="utf-8")
    copy = parse("b", "--config_file", str(file))
    assert (copy.source, copy.target, copy.mode) == (Path("a"), Path("b"), "other")
    assert parse("b", "--config_file", str(file), "--source", "c").source == Path("c")
    message = "'c' is one argument too many: SOURCE is given in --config_file, MODE is given in --config_file."
    assert message in error_of("b", "c", "--config_file", str(file))


def test_the_help_shows_places_first():
    with pytest.raises(Finished, match=r"usage: copy.py SOURCE TARGET \[MODE\] \[options\]") as finished:
        parse("--help")
    assert "  SOURCE" in str(finished.value) and "--source" not in str(finished.value)
