"""Prompt files: defaults, warnings that name the line, and errors at the start."""

import logging

import pytest

from library.errors import OptionError
from library.training.prompts import SamplePrompt, load_prompts, parse_prompt_line


@pytest.fixture(autouse=True)
def _log_lines_reach_caplog(monkeypatch):
    """Also where an earlier test in this process has set up logging as the scripts do."""
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)


def write(tmp_path, text, name="prompts.txt", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_what_a_prompt_leaves_open_is_filled_in(tmp_path):
    path = write(tmp_path, "a cat\na dog --w 512 --h 768 --d 5 --s 4 --l 1 --n blurry\n")
    assert load_prompts(path, size=1024, steps=28, scale=4.5) == (
        SamplePrompt("a cat", "", 1024, 1024, None, 28, 4.5, index=0),
        SamplePrompt("a dog", "blurry", 512, 768, 5, 4, 1.0, index=1),
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cat --h abc", "--h abc is left out: it needs a whole number"),
        ("cat --d -5", "--d -5 is left out"),
        ("cat --l 1.2.3", "--l 1.2.3 is left out: it needs a number"),
        ("cat --zz 3", '"--zz 3" is not an option'),
        ("cat --w512", '"--w512" is not an option'),
        ("cat -- w 512", "is not an option"),
        ("cat --n", "--n without a value is left out"),
        ("cat --s 5000", '"--s 5000" is read as 1000'),
        ("cat --w 512.9", '"--w 512.9" is read as 512'),
        ("cat --l 5 --l 6", "--l is given twice"),
        ("--w 512 --h 512", "write the prompt before it"),
        ("cat--w 512", "put a blank before it"),
    ],
)
def test_what_is_not_understood_is_a_warning_with_file_and_line(line, words, tmp_path, caplog):
    load_prompts(write(tmp_path, f"# first\nfine --w 512\n{line}\n"), size=512)
    assert len(caplog.messages) == 1
    assert "prompts.txt line 3" in caplog.messages[0]
    assert words in caplog.messages[0]


@pytest.mark.parametrize("line", ["w 640 whales in the sea", "a photo - 4k --n bad --d 3", "x--y and co"])
def test_good_lines_are_silent(line):
    assert parse_prompt_line(line).problems == ()


def test_options_without_effect_are_one_warning(tmp_path, caplog):
    load_prompts(write(tmp_path, "cat --g 3 --ss euler_a --fs 2\n"))
    assert caplog.messages == [m for m in caplog.messages if "guidance_scale, sample_sampler, flow_shift have" in m]
    assert len(caplog.messages) == 1


def test_sides_are_rounded_down_with_a_warning(tmp_path, caplog):
    (prompt,) = load_prompts(write(tmp_path, "cat --w 523 --h 8\n"))
    assert (prompt.width, prompt.height) == (512, 64)
    assert "width 523 becomes 512: sides are multiples of 16" in caplog.text
    assert "height 8 becomes 64" in caplog.text


def test_indented_comment_is_a_prompt_and_said(tmp_path, caplog):
    assert [p.prompt for p in load_prompts(write(tmp_path, "cat\n  # note\n"))] == ["cat", "# note"]
    assert "line 2" in caplog.text


def test_too_large_seed_is_left_out(tmp_path, caplog):
    (prompt,) = load_prompts(write(tmp_path, f"cat --d {2**70}\n"))
    assert prompt.seed is None
    assert "too large" in caplog.text


def test_byte_order_mark_and_windows_line_ends_are_no_part_of_a_prompt(tmp_path):
    path = write(tmp_path, "# note\r\nein Kätzchen --w 512\r\n", encoding="utf-8-sig")
    assert [p.prompt for p in load_prompts(path)] == ["ein Kätzchen"]


def test_toml_subsets_override_the_defaults(tmp_path):
    path = write(
        tmp_path,
        '[prompt]\nwidth = 512\nscale = 6\n[[prompt.subset]]\nprompt = "a"\nwidth = 640\n'
        '[[prompt.subset]]\nprompt = "b"\n',
        "prompts.toml",
    )
    assert [(p.prompt, p.width, p.height, p.scale) for p in load_prompts(path, size=256)] == [
        ("a", 640, 256, 6.0),
        ("b", 512, 256, 6.0),
    ]


def test_json_warnings_name_the_entry(tmp_path, caplog):
    load_prompts(write(tmp_path, '[{"prompt": "a", "flow_shift": 3}, "b --zz 1"]', "prompts.json"))
    assert "entry 1: flow_shift has no effect" in caplog.text
    assert 'entry 2: "--zz 1" is not an option' in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("prompts.md", "cat", "ends in '.md'. Give a .txt, .toml or .json file"),
        ("prompts", "cat", "ends in 'nothing'"),
        ("prompts.txt", "# only a note\n", "has no prompts"),
        ("prompts.toml", "[prompt]\nwidth = 3\n", "has no \\[\\[prompt.subset\\]\\]"),
        ("prompts.toml", "[prompt\n", "line 1"),
        ("prompts.json", "[{]", "line 1: not valid JSON"),
        ("prompts.json", '{"prompt": "a"}', "must be a list"),
        (
            "prompts.json",
            '[{"prompt": "a", "widht": 3}, 7, {"seed": -1}]',
            r"entry 1: unknown key widht \(did you mean width\?\); entry 2: neither.*; entry 3: no prompt; "
            "entry 3: seed must be a whole number of 0 or more, got -1",
        ),
    ],
)
def test_files_that_cannot_be_read_are_errors_with_the_name(name, text, words, tmp_path):
    path = write(tmp_path, text, name)
    with pytest.raises(OptionError, match=words) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_an_error(tmp_path):
    for name in ("gone.txt", "gone.toml", "gone.json"):
        with pytest.raises(OptionError, match=f"{name} does not exist"):
            load_prompts(tmp_path / name)


def test_other_encodings_are_an_error(tmp_path):
    with pytest.raises(OptionError, match=r"prompts.txt is not UTF-8 text"):
        load_prompts(write(tmp_path, "Kätzchen\n", encoding="latin-1"))
