"""Prompt files: defaults, warnings that name the line, and errors at the start."""

import dataclasses
import logging
import os

import pytest

from library.errors import OptionError
from library.training.sampling.prompt_lines import parse_prompt_line, shortened
from library.training.sampling.prompts import PromptDefaults, PromptFile, SamplePrompt, load_prompts


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
    assert load_prompts(path, PromptDefaults(size=1024, steps=28, scale=4.5)) == (
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
    load_prompts(write(tmp_path, f"# first\nfine --w 512\n{line}\n"), PromptDefaults(size=512))
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


SEVERAL = PromptDefaults(samplers=("ddim", "euler_a"), sampler="ddim")


def test_a_prompt_names_its_sampler_where_there_are_several(tmp_path, caplog):
    prompts = load_prompts(write(tmp_path, "cat\ndog --ss Euler_A\n"), SEVERAL)
    assert [prompt.sampler for prompt in prompts] == ["ddim", "euler_a"]
    assert not caplog.messages


def test_an_unknown_sampler_is_a_warning_and_the_usual_one_draws(tmp_path, caplog):
    (prompt,) = load_prompts(write(tmp_path, "cat --ss plms\n"), SEVERAL)
    assert prompt.sampler == "ddim"
    assert "line 1: there is no sampler plms, so ddim draws it; known are ddim, euler_a" in caplog.text


@dataclasses.dataclass
class Family:
    sample_size: int = 512
    sample_steps: int = 30
    sample_guidance: float = 7.5
    sample_multiple: int = 8
    samplers: tuple[str, ...] = ()
    is_weighted: bool = False


def test_brackets_that_weigh_nothing_are_told_once_a_file(tmp_path, caplog):
    text = "a (small) cat: nice\n\\(a cat:1.3\\)\na dog --n (bad:1.3) [worse]\n((a cow):.5)\n"
    prompts = load_prompts(write(tmp_path, text))
    assert prompts[2].negative_prompt == "(bad:1.3) [worse]"
    (line,) = caplog.messages
    assert "prompts.txt line 3: (bad:1.3) is read as text: brackets weigh words only with --weighted_captions" in line
    caplog.clear()
    load_prompts(tmp_path / "prompts.txt", PromptDefaults.of_family(Family(is_weighted=True)))
    assert not caplog.messages


def test_the_sampler_option_counts_only_for_families_that_have_several(tmp_path, caplog):
    one, several = (PromptDefaults.of_family(Family(samplers=names), "heun") for names in ((), ("ddim", "heun")))
    path = write(tmp_path, "cat --w 520\n")
    assert [load_prompts(path, defaults)[0].sampler for defaults in (one, several)] == [None, "heun"]
    assert load_prompts(path, several)[0].width == 520
    assert not caplog.messages


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
    assert [(p.prompt, p.width, p.height, p.scale) for p in load_prompts(path, PromptDefaults(size=256))] == [
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
        ("prompts.json", "[{]", "line 1, column 3: not valid JSON"),
        ("prompts.json", '{"prompt": "a"}', "must be a list"),
        (
            "prompts.json",
            '[{"prompt": "a", "widht": 3}, 7, {"seed": -1}]',
            r"entry 1: unknown key widht \(did you mean width\?\); entry 2: neither.*; entry 3: no prompt; "
            "entry 3: seed must be a whole number of 0 or more, got -1",
        ),
        ("prompts.json", '["a",]', "trailing comma"),
        ("prompts.json", '[{"prompt": "a", "prompt": "b"}]', "prompt stands twice"),
        ("prompts.json", "[" * 200_000, "nested too deeply"),
        ("prompts.json", '[{"prompt": "a", "seed": ' + "9" * 5000 + "}]", "Number too long"),
        ("prompts.json", '[{"prompt": "a", "scale": ' + "9" * 400 + "}]", "scale must be .* got a far larger number"),
        ("prompts.json", '[{"prompt": "a", "scale": 1e999}]', "scale must be a number of 0 or more, got inf"),
        ("prompts.json", '[{"prompt": "a\\ud800"}]', "prompt has half a character"),
        ("prompts.toml", "a = " + "[" * 200_000, "prompts.toml"),
        ("prompts.toml", "a = " + "9" * 5000, "prompts.toml"),
        ("prompts.toml", "[prompt]\n[[prompt.subset]]\nprompt = 'a'\nwidth = 0x" + "F" * 5000, "a far larger number"),
        ("prompts.txt", "fine\ncat --w 100000", "line 2: width 100000 is too large. Give at most 8192"),
        ("prompts.txt", "cat --h " + "9" * 4000, "is too large"),
        ("prompts.txt", "a" * (16 * 1024**2 + 1), "has more than 16,777,216 bytes"),
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


def test_numbers_that_are_no_float_are_left_out(tmp_path, caplog):
    (prompt,) = load_prompts(write(tmp_path, "cat --l " + "9" * 400 + "\n"), PromptDefaults(scale=3.0))
    assert prompt.scale == 3.0
    assert "is left out" in caplog.text


def test_messages_about_endless_lines_are_short(tmp_path, caplog):
    load_prompts(write(tmp_path, f"cat --zz {'word ' * 100_000}\n{'a ' * 100_000} --d {'x' * 100_000}\n"))
    assert len(caplog.messages) == 2
    assert all(len(message) < 500 for message in caplog.messages)


def test_shortened_texts_are_one_line():
    assert shortened("a\n  cat", 10) == "a cat"
    assert shortened("a very long cat", 10) == "a very ..."


def test_negative_prompts_are_encoded_only_where_they_count(tmp_path):
    guided, plain = load_prompts(write(tmp_path, "cat --n bad --l 2\ncat --n bad --l 1\n"))
    assert guided.texts == ("cat", "bad")
    assert plain.texts == ("cat",)


class TestPromptFile:
    """A file that is edited while a training runs."""

    @pytest.fixture
    def path(self, tmp_path):
        return write(tmp_path, "a cat\n")

    @pytest.fixture
    def file(self, path):
        return PromptFile(path, PromptDefaults(size=64))

    def texts(self, file):
        return [prompt.prompt for prompt in file.prompts]

    def test_nothing_happens_while_the_file_stays(self, file):
        before = file.prompts
        assert not file.reread()
        assert file.prompts is before

    def test_edits_are_taken_over(self, file, path):
        path.write_text("a cat\na dog\n", encoding="utf-8")
        assert file.reread()
        assert self.texts(file) == ["a cat", "a dog"]
        assert not file.reread()

    def test_an_edit_that_leaves_size_and_time_alone_is_seen(self, file, path):
        before = path.stat()
        path.write_text("a dog\n", encoding="utf-8")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.reread()
        assert self.texts(file) == ["a dog"]

    def test_comments_are_no_change(self, file, path):
        path.write_text("# note\na cat\n", encoding="utf-8")
        assert not file.reread()

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"K\xe4tzchen", "is not UTF-8"),
            (b"\x00\xff" * 1000, "is not UTF-8"),
            (b"", "has no prompts"),
            (b"cat --w 999999", "is too large"),
            (None, "does not exist"),
        ],
    )
    def test_a_faulty_file_is_told_once_and_the_last_good_prompts_stay(self, file, path, content, words):
        good = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(OptionError, match=words):
            file.reread()
        assert not file.reread()
        assert self.texts(file) == ["a cat"]
        path.write_bytes(good + b"a dog")
        assert file.reread()
        assert self.texts(file) == ["a cat", "a dog"]

    def test_what_the_model_cannot_draw_is_not_taken_over(self, file, path):
        def check(prompts):
            if max(prompt.width for prompt in prompts) > 128:
                raise OptionError("too wide")

        path.write_text("a dog --w 256", encoding="utf-8")
        with pytest.raises(OptionError, match="too wide"):
            file.reread(check)
        assert self.texts(file) == ["a cat"]
        assert not file.reread(check)

    def test_a_folder_in_place_of_the_file_is_an_error(self, file, path):
        path.unlink()
        path.mkdir()
        with pytest.raises(OptionError, match="cannot be read"):
            file.reread()
