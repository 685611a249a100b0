"""What PNG files say of themselves, written and read back."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from library.errors import UserError
from library.generation.png_reading import parse_parameters, parts_left_out, read_parameters, read_record
from library.generation.png_text import SAMPLER_TITLES, generation_text, parameters_text, png_chunks, quoted
from library.generation.prompt_lines import PromptOptions
from library.generation.record import GenerationRecord, NetworkUse, PictureSizes

RECORD = GenerationRecord(
    prompt="a cat, (red:1.2)",
    negative_prompt="blurry: ugly",
    width=640,
    height=512,
    seed=42,
    steps=28,
    sampler="k_euler_a",
    scale=7.5,
    strength=0.4,
    family="sd",
    model="models/base, v1.safetensors",
    model_hash="0123456789",
    networks=(NetworkUse("my.safetensors", "my", "abcdef012345", 0.75), NetworkUse("b.pt", "b", "012345abcdef", -1)),
    clip_skip=2,
)


def save(path, record):
    Image.new("RGB", (8, 8)).save(path, pnginfo=png_chunks(generation_text(record)))
    return path


def test_the_text_is_the_one_that_other_programs_read():
    assert parameters_text(RECORD) == (
        "a cat, (red:1.2) <lora:my:0.75> <lora:b:-1>\n"
        "Negative prompt: blurry: ugly\n"
        "Steps: 28, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 640x512, Model hash: 0123456789, "
        'Model: "base, v1", Denoising strength: 0.4, Clip skip: 2, '
        'Lora hashes: "my: abcdef012345, b: 012345abcdef", Version: Easel'
    )


def test_single_chunks_have_the_known_names():
    sizes = PictureSizes(1024, 960, 640, 600, crop_top=8, crop_left=16)
    record = replace(RECORD, sizes=sizes, negative_scale=2.0, clip_prompt="photo")
    texts = generation_text(record)
    del texts["parameters"], texts["easel"]
    assert texts == {
        "prompt": "a cat, (red:1.2)",
        "negative-prompt": "blurry: ugly",
        "negative-scale": "2",
        "clip-prompt": "photo",
        "seed": "42",
        "sampler": "k_euler_a",
        "steps": "28",
        "scale": "7.5",
        "original-width": "1024",
        "original-height": "960",
        "original-width-negative": "640",
        "original-height-negative": "600",
        "crop-top": "8",
        "crop-left": "16",
    }


def test_two_passes_are_told_as_other_programs_tell_them():
    extras = {"highres_fix_scale": 0.5, "highres_fix_steps": 20, "highres_fix_latents_upscaling": False}
    text = parameters_text(replace(RECORD, extras=extras))
    assert "Steps: 20," in text
    assert "Size: 320x256, " in text
    assert "Denoising strength: 0.4, Hires upscale: 2, Hires steps: 28, Hires upscaler: Lanczos," in text
    found = parse_parameters(text)
    assert (found.width, found.height) == (640, 512)


def test_a_picture_without_networks_and_negative_prompt_says_nothing_of_them():
    text = parameters_text(replace(RECORD, networks=(), negative_prompt="", strength=None, clip_skip=None))
    assert text.split("\n")[0] == "a cat, (red:1.2)"
    assert not re.search("lora|Negative|Denoising|Clip", text, re.IGNORECASE)


@given(
    prompt=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40),
    seed=st.integers(0, 2**63 - 1),
    scale=st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_record_is_read_back_as_it_was(tmp_path_factory, prompt, seed, scale):
    record = replace(RECORD, prompt=prompt, seed=seed, scale=scale, sizes=PictureSizes(8, 8, 8, 8))
    assert read_record(save(tmp_path_factory.getbasetemp() / "picture.png", record)) == record


def test_half_characters_do_not_stop_a_picture_from_being_written(tmp_path):
    record = read_record(save(tmp_path / "picture.png", replace(RECORD, prompt="a \udce9 cat")))
    assert record is not None
    assert read_parameters(tmp_path / "picture.png").prompt == "a ? cat"


@given(st.sampled_from(sorted(SAMPLER_TITLES)), st.text("ab c,:<>{}|()\n", max_size=30).map(str.strip))
def test_settings_in_the_text_are_read_back(sampler, negative):
    record = replace(RECORD, sampler=sampler, negative_prompt=negative)
    found = parse_parameters(parameters_text(record))
    assert found == PromptOptions(
        prompt=RECORD.prompt,
        negative_prompt=negative or None,
        steps=28,
        sampler=sampler,
        scale=7.5,
        seeds=(42,),
        width=640,
        height=512,
        strength=0.4,
    )


def test_a_text_of_another_program_is_read():
    text = (
        "masterpiece,\nbest quality <lora:style:0.8>, cat\nNegative prompt: lowres,\nbad hands\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234567890, Size: 512x768, "
        'Model hash: 6ce0161689, Model: v1-5, Lora hashes: "style: 0123456789ab", Version: v1.10.1'
    )
    assert parse_parameters(text) == PromptOptions(
        prompt="masterpiece,\nbest quality, cat",
        negative_prompt="lowres,\nbad hands",
        steps=20,
        sampler="dpmsolver++",
        scale=7.0,
        seeds=(1234567890,),
        width=512,
        height=768,
    )
    assert parts_left_out(text) == ["<lora:style:0.8>", "Schedule type: Karras"]


def test_a_text_without_settings_is_a_prompt():
    assert parse_parameters("a cat\nSteps: 20") == PromptOptions("a cat\nSteps: 20")


def test_malformed_settings_count_as_not_said():
    text = "a cat\nSteps: many, Sampler: Unheard Of, CFG scale: x, Seed: -1, Size: big"
    assert parse_parameters(text) == PromptOptions("a cat")
    assert parts_left_out(text) == text.split("\n")[1].split(", ")
    text = "a cat\nSteps: 1001, Denoising strength: 7, Size: 0x64"
    assert parse_parameters(text) == PromptOptions("a cat")


@given(st.text(max_size=120))
def test_any_text_is_read(text):
    assert isinstance(parse_parameters(text), PromptOptions)


@pytest.mark.parametrize("value", ["plain words", "a, b", "a: b", "two\nlines", 'with "quotes"', "é, ü"])
def test_values_in_quotes_are_read_back(value):
    assert (quoted(value) == value) == (value == "plain words")
    assert quoted(value) == value or json.loads(quoted(value)) == value


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "does not exist"), (b"", "no picture that can be read"), (b"GIF89a" * 9, "no picture that can be read")],
)
def test_files_that_are_no_pictures_are_named(tmp_path, content, sentence):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_record(path)


def test_a_truncated_picture_and_a_folder_are_named(tmp_path):
    path = save(tmp_path / "picture.png", RECORD)
    path.write_bytes(path.read_bytes()[:-40])
    for wrong in (path, tmp_path):
        with pytest.raises(UserError, match=r"--from_png: "):
            read_record(wrong)


def test_a_picture_that_says_nothing_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    assert read_record(tmp_path / "bare.png") is None
    with pytest.raises(UserError, match="does not say how it was made"):
        read_parameters(tmp_path / "bare.png")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"prompt": 1}', "[" * 100_000])
def test_a_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=png_chunks({"easel": text}))
    with pytest.raises(UserError, match="picture.png: its text"):
        read_record(path)
