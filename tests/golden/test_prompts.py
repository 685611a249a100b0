"""Sample prompt lines and files against stored reference values (data/SOURCES.d)."""

import json
from pathlib import Path

import pytest

from library.training.sampling.prompt_files import parse_settings
from library.training.sampling.prompt_lines import parse_prompt_line

GOLDEN = json.loads((Path(__file__).parent / "data" / "prompts.json").read_text())
# There the first letter of the prompt itself is taken for an option too: "w 640 whales in the sea" sets the width.
# Here a prompt is never an option.
STARTS_LIKE_AN_OPTION = {
    "w 640 whales in the sea": {"prompt": "w 640 whales in the sea"},
    "n a night scene --w 64": {"prompt": "n a night scene", "width": 64},
    "s 4 seasons": {"prompt": "s 4 seasons"},
}
LINES = {case["line"]: case["parsed"] for case in GOLDEN["lines"]}


@pytest.mark.parametrize("line", [line for line in LINES if line not in STARTS_LIKE_AN_OPTION])
def test_line_is_read_as_stored(line):
    assert parse_prompt_line(line).settings == LINES[line]


@pytest.mark.parametrize("line", STARTS_LIKE_AN_OPTION)
def test_first_word_of_the_prompt_is_no_option(line):
    assert line in LINES
    assert parse_prompt_line(line).settings == STARTS_LIKE_AN_OPTION[line]


@pytest.mark.parametrize("case", GOLDEN["files"], ids=lambda case: case["extension"])
def test_file_is_read_as_stored(case):
    parsed = parse_settings(Path(f"prompts.{case['extension']}"), case["content"].encode())
    assert [{**settings, "enum": index} for index, (_, settings) in enumerate(parsed)] == case["parsed"]
