"""Lines with a prompt and its options."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.errors import OptionError
from library.generation.prompt_lines import LINE_OPTIONS, PromptOptions, parse_prompt

WHOLE_LINE = (
    "a cat --w 768 --h 512 --ow 1024 --oh 960 --nw 640 --nh 600 --ct 8 --cl 16 --s 28 --d 1,2,3 --l 4.5 --nl 2.5 "
    "--t 0.4 --n blurry, ugly --c a photo --am 0.8,-0.5 --dsd1 3 --dst1 650 --dsd2 5 --dst2 400 --dsr 0.5 --glt 750 "
    "--glr 0.5 --gle 3 --gls 0.125 --glsn 1.0 --glus 3,0.5,0.5,0 --f cat one --ss k_euler_a"
)


def test_every_option_of_a_line_is_read():
    assert parse_prompt(WHOLE_LINE) == PromptOptions(
        prompt="a cat",
        negative_prompt="blurry, ugly",
        width=768,
        height=512,
        original_width=1024,
        original_height=960,
        original_width_negative=640,
        original_height_negative=600,
        crop_top=8,
        crop_left=16,
        steps=28,
        seeds=(1, 2, 3),
        scale=4.5,
        negative_scale=2.5,
        strength=0.4,
        clip_prompt="a photo",
        network_muls=(0.8, -0.5),
        ds_depth_1=3,
        ds_timesteps_1=650,
        ds_depth_2=5,
        ds_timesteps_2=400,
        ds_ratio=0.5,
        gradual_latent_timesteps=750,
        gradual_latent_ratio=0.5,
        gradual_latent_every_n_steps=3,
        gradual_latent_ratio_step=0.125,
        gradual_latent_s_noise=1.0,
        gradual_latent_unsharp_params="3,0.5,0.5,0",
        file_name="cat one",
        sampler="k_euler_a",
    )


def test_the_line_above_has_all_options():
    assert all(f" {flag} " in WHOLE_LINE for flag in LINE_OPTIONS)


@pytest.mark.parametrize("line", ["w 10 cats", "n", "", "a cat -- dog", "well-known --words"])
def test_only_pieces_behind_the_prompt_are_options(line):
    if " --" in line:
        with pytest.raises(OptionError, match="is no option of a prompt"):
            parse_prompt(line)
    else:
        assert parse_prompt(line) == PromptOptions(line)


def test_letters_may_be_capital_and_blanks_many():
    assert parse_prompt("a cat  --W  64   --SS Euler ") == PromptOptions("a cat", width=64, sampler="euler")


def test_a_blank_before_the_first_option_is_a_prompt_without_words():
    assert parse_prompt(" --d 5") == PromptOptions("", seeds=(5,))


def test_a_negative_prompt_may_have_no_words():
    assert parse_prompt("a cat --n").negative_prompt == ""


def test_negative_scale_can_be_switched_off():
    assert parse_prompt("a cat --nl None").negative_scale == "none"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a cat --width 64", "file line 3: --width is no option of a prompt"),
        ("a cat --dsd3 1", "Did you mean --dsd2?"),
        ("a cat --width 1", "Did you mean --w?"),
        ("a cat --seed 1", "Did you mean --d?"),
        ("a cat --zzz", "Known are --w, --h"),
        ("a cat --w 512px", '--w needs a whole number of 1 or more, got "512px"'),
        ("a cat --w", "--w needs a whole number of 1 or more, got nothing"),
        ("a cat --w 0", "--w needs a whole number of 1 or more"),
        ("a cat --w -8", "--w needs a whole number of 1 or more"),
        ("a cat --d 1,,2", "--d needs whole numbers of 0 or more with commas"),
        ("a cat --l nan", "--l needs a number"),
        ("a cat --l 1e999", "--l needs a number"),
        ("a cat --t 1.5", "--t needs a number of 0 to 1"),
        ("a cat --am 1;2", "--am needs numbers with commas"),
        ("a cat --s 5000", "--s needs a whole number of 1 to 1000"),
        ("a cat --d 1 --d 2", "--d is given twice"),
        ("a cat--w 512", '"t--w 512" would be part of the prompt. Put a blank before the option.'),
        ("--w 512 a cat", "begins with the option"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(line, sentence):
    with pytest.raises(OptionError) as error:
        parse_prompt(line, "file line 3")
    assert sentence in str(error.value)
    assert str(error.value).startswith("file line 3")


@given(st.text(max_size=60))
def test_any_line_is_read_or_refused(line):
    try:
        assert isinstance(parse_prompt(line), PromptOptions)
    except OptionError as error:
        assert "\n" not in str(error)
