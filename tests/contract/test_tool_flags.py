"""The flags of the tools that come before and after a training are those users know."""

import gzip
import json
import runpy
import sys
from pathlib import Path

import pytest

from library.options.spec import Finished, options_of, parse_options
from tools.make_options_doc import TOOLS, TOOLS_PAGE, current_tools_page

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    script: entries
    for name in ("cli_options_preparing", "cli_options_after")
    for script, entries in json.loads(
        gzip.decompress((ROOT / "tests/golden/data" / f"{name}.json.gz").read_bytes())
    ).items()
}
OURS = {script["prog"].removesuffix(".py"): (options, script) for options, script in TOOLS}
SAME_AS = {"finetune/make_captions_by_git": "finetune/make_captions"}
DEFAULTS = {  # {script: {option: ours}} where another default is right
    "finetune/make_captions": {"caption_weights": "Salesforce/blip-image-captioning-large"},
}
TYPES = {"flag": {None}, "int": {"int"}, "float": {"float"}, "str": {"str", None}, "path": {"str", None}}


def ours_by_name(script):
    """Our options by every name that they have."""
    options = options_of(OURS[script][0])
    return {flag.removeprefix("--"): option for option in options.values() for flag in option.flags}


@pytest.mark.parametrize("script", KNOWN)
def test_every_known_option_is_there_with_its_type_default_and_choices(script):
    ours, differences = ours_by_name(script), []
    for known in KNOWN[script]:
        name = known["dest"]
        own = ours.get(name)
        if own is None:
            differences.append(f"{name} is missing")
            continue
        is_alias = own.name != name
        default = DEFAULTS.get(script, {}).get(name, known["default"])
        pairs = [
            (own.declared.is_positional, not known["flags"]),
            (known["type"] in TYPES[own.kind], True),
            (None if own.default is None else str(own.default), None if default is None else str(default)),
            (set(own.declared.choices), set(known["choices"] or ()) - {None}),
        ]
        differences += [f"{name}: {mine} is not {theirs}" for mine, theirs in pairs if mine != theirs and not is_alias]
    assert not differences


@pytest.mark.parametrize("script", KNOWN)
def test_places_are_in_the_known_order(script):
    places = [option.name for option in options_of(OURS[script][0]).values() if option.declared.is_positional]
    known = [entry["dest"] for entry in KNOWN[script] if not entry["flags"]]
    assert places[: len(known)] == known


@pytest.mark.parametrize("script", OURS)
def test_the_script_answers_for_help_from_any_folder(script, tmp_path, monkeypatch, capsys):
    options, text = OURS[script]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    assert end.value.code == 0
    with pytest.raises(Finished) as finished:
        parse_options(options, ["--help"], **text)
    assert capsys.readouterr().out == f"{finished.value}\n"


def test_every_tool_that_parses_options_is_documented():
    rooms = [path for room in ("finetune", "tools", "networks") for path in (ROOT / room).glob("*.py")]
    rooms += ROOT.glob("*gen_img.py")
    there = {path for path in rooms if "run_script" in path.read_text(encoding="utf-8")}
    assert {path.relative_to(ROOT).with_suffix("").as_posix() for path in there} == set(OURS)


def test_docs_tool_options_md_is_up_to_date():
    assert TOOLS_PAGE.read_text(encoding="utf-8") == current_tools_page(), "run: python -m tools.make_options_doc"


@pytest.mark.parametrize("script", OURS)
def test_the_page_has_a_table_for_every_tool(script):
    assert f"\n## {script}.py\n" in TOOLS_PAGE.read_text(encoding="utf-8")
