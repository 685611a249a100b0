"""From prompts to what is drawn: which source picture, size, strengths and names each has, and what is told."""

import logging
from pathlib import Path

import numpy
import pytest
from PIL import Image

from library.errors import DatasetError, OptionError
from library.families.sd.family import SdFamily
from library.generation.extras import tell_unused
from library.generation.guides import GuidePictures, load_guide
from library.generation.jobs import JobMaker, Seeds
from library.generation.options.scripts import GENERATION_SCRIPT, GenerationOptions
from library.generation.prompt_file import PromptLine
from library.generation.prompt_lines import parse_prompt
from library.generation.record import GenerationRecord
from library.generation.sources import SourcePictures, load_cells_mask, load_source
from library.generation.supply import AskedPrompt, PromptSupply
from library.log import LOGGER_NAME
from library.options.spec import parse_options
from library.records import Size

BASE = GenerationRecord(
    prompt="", width=0, height=0, seed=0, steps=1, sampler="ddim", scale=1.0, family="sd", model="m.safetensors"
)


def options_of(*given):
    return parse_options(GenerationOptions, ["--ckpt=m", "--prompt=x", *given], **GENERATION_SCRIPT)


def records_of(line, *given, images=()):
    options = options_of(*given)
    family = SdFamily(pretrained=Path("m"))
    maker = JobMaker(options, family, BASE, None, SourcePictures(tuple(images)), GuidePictures())
    return maker.records(AskedPrompt(parse_prompt(line), "--prompt"), iteration=0, seeds=Seeds(1))


@pytest.fixture
def told(caplog, monkeypatch):
    """What is logged."""
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "handlers", [caplog.handler])
    return lambda: caplog.text


# Which picture belongs to a prompt


def supplied(**more):
    lines = [PromptLine(text, "p.txt") for text in ("a {red|green} cat", "a dog", "a bird")]
    return PromptSupply(lines=lines, count=2, seed=3, **more)


def test_variants_have_the_number_of_their_line():
    asked = list(supplied().iteration(0))
    assert [one.number for one in asked if "cat" in one.options.prompt] == [0, 0]
    assert [one.number for one in asked if "cat" not in one.options.prompt] == [1, 2]


def test_shuffled_lines_come_in_other_orders_and_keep_their_numbers():
    orders = [[one.number for one in supplied(is_shuffled=True).iteration(number)] for number in range(8)]
    assert all(sorted(order) == [0, 0, 1, 2] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    asked = supplied(is_shuffled=True).iteration(1)
    assert all(("dog" in one.options.prompt) == (one.number == 1) for one in asked)


@pytest.mark.parametrize(
    ("asked", "size"),
    [("x", (72, 40)), ("x --w 144", (144, 80)), ("x --h 80", (144, 80)), ("x --w 64 --h 64", (64, 64))],
)
def test_a_side_that_is_not_said_follows_the_shape_of_the_picture(tmp_path, asked, size):
    Image.new("RGB", (72, 40)).save(tmp_path / "photo.png")
    (record,) = records_of(asked, images=[tmp_path / "photo.png"])
    assert (record.width, record.height) == size


# What a line asks for


@pytest.mark.parametrize(
    ("line", "given", "sentence"),
    [
        ("x --f a/b", [], "no name for a file"),
        ("x --am 1,2,3", ["--network_weights", "a", "b"], "--am has 3 numbers for 2 files"),
        ("x --am 1,2", ["--network_weights", "a", "b", "--network_merge_n_models=1"], "--am has 2 numbers for 1 file "),
        ("x --dsd1 3 --dsd2 5 --dst2 900", [], "(--dst2 in a line)"),
    ],
)
def test_what_a_line_cannot_have_is_named(line, given, sentence):
    with pytest.raises(OptionError) as error:
        records_of(line, *given)
    assert sentence in str(error.value)


@pytest.mark.parametrize("line", ["x --dsd1 3 --dsr 2", "x --glt 700 --glr 2", "x --dsd1 0", "x --glt 700 --glsn -1"])
def test_lines_have_the_limits_of_options(line):
    with pytest.raises(OptionError, match="needs a"):
        parse_prompt(line)


@pytest.mark.parametrize(
    ("line", "given", "sentence"),
    [
        ("a cat <lora:style:0.5>", [], "<lora:style:0.5> is read as words of the prompt"),
        ("a cat --n <lyco:style:1>", [], "<lyco:style:1> is read as words of the prompt"),
        ("a <cat> --t 0", ["image"], "With a strength of 0 nothing is drawn anew"),
        ("a <cat> --t 0.1", ["image"], ""),
    ],
)
def test_what_does_not_act_as_it_may_be_meant_is_told(tmp_path, told, line, given, sentence):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    records_of(line, images=[tmp_path / "photo.png"] if given else [])
    said = told()
    assert sentence in said if sentence else said == ""


def test_strengths_without_a_network_that_can_change_are_told(told):
    records_of("x --am 0.5", "--network_weights", "a", "--network_merge")
    assert "--am has no effect" in told()


@pytest.mark.parametrize(
    ("given", "line", "sentence"),
    [
        (["--ds_ratio=0.3"], "x", "--ds_ratio (--dsr in a line) has no effect without --ds_depth_1"),
        (["--ds_ratio=0.3"], "x --dsd1 3", ""),
        (["--ds_timesteps_2=100"], "x --dsd1 3", "has no effect without --ds_depth_2"),
        (["--gradual_latent_ratio=0.3"], "x", "has no effect without --gradual_latent_timesteps"),
        (["--force_scheduler_zero_steps_offset", "--sampler=euler"], "x", "it is for ddim and pndm"),
        (["--force_scheduler_zero_steps_offset", "--sampler=euler"], "x --ss ddim", ""),
    ],
)
def test_parts_of_extras_that_no_picture_has_are_told(told, given, line, sentence):
    options = options_of(*given)
    tell_unused(options, records_of(line, *given))
    said = told()
    assert sentence in said if sentence else said == ""


def test_a_person_is_told_what_is_wrong_and_goes_on(told):
    with PromptSupply(is_interactive=True).forgiving():
        raise DatasetError("no picture")
    assert "no picture" in told()
    with pytest.raises(DatasetError), PromptSupply().forgiving():
        raise DatasetError("no picture")


# Pictures with more than 8 bits, or transparent


def test_deep_and_transparent_pictures_are_seen_as_they_look(tmp_path):
    Image.fromarray(numpy.full((8, 8), 128 * 257, numpy.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    size = Size(8, 8)
    for load in (load_source, load_guide):
        assert load(tmp_path / "deep.png", size).getpixel((0, 0)) == (128, 128, 128)
        assert load(tmp_path / "clear.png", size).getpixel((0, 0)) == (255, 255, 255)
    assert load_cells_mask(tmp_path / "deep.png", size, 8).item() == pytest.approx(128 / 255)


# Sheets


def test_an_axis_of_models_stands_for_the_model_and_one_of_networks_for_networks():
    options = options_of("--xyz", "ckpt=a,b")
    assert dict(options.without_effect())["ckpt"] == 'the axis "ckpt" stands for it'
    parse_options(GenerationOptions, ["--prompt=x", "--xyz", "ckpt=a,b"], **GENERATION_SCRIPT)
    options_of("--xyz", "weights=a,b", "--network_mul", "0.5", "--network_module", "networks.oft")
    with pytest.raises(OptionError, match="--network_mul needs --network_weights"):
        options_of("--xyz", "steps=1,2", "--network_mul", "0.5")
