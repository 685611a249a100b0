"""Options of a conversion: what goes together, and the text of --metadata, which is never run."""

from pathlib import Path

import pytest

from library.errors import OptionError
from library.model_files.options.converting import (
    CONVERTING_SCRIPT,
    ConversionOptions,
    ConvertingOptions,
    is_file_name,
)
from library.model_files.options.metadata_text import read_metadata
from library.options.spec import parse_options


@pytest.mark.parametrize(
    ("name", "is_file"),
    [("a.safetensors", True), ("a.CKPT", True), ("folder", False), ("model-v1.5", False), ("a.b/folder", False)],
)
def test_the_ending_tells_a_file_from_a_folder(name, is_file):
    ConversionOptions(model_to_save=Path(name))
    assert is_file_name(Path(name)) == is_file


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_to_save": Path("a.safetensor")}, "ends in .safetensor. Give a name"),
        ({"model_to_save": Path("a.bin")}, "ends in .bin"),
        ({"fp16": True, "float": True}, "--float and --fp16 ask for different precisions"),
        ({"fp16": True, "save_precision_as": "bf16"}, "--fp16 and --save_precision_as"),
        ({"v1": True, "v2": True}, "exclude each other"),
        ({"metadata": "title"}, '--metadata has no = in "title"'),
        ({"metadata": "{'a': 1}"}, "--metadata is no JSON"),
        ({"metadata": "__import__('os')"}, "--metadata has no ="),
        ({"variant": "../x"}, "--variant"),
    ],
)
def test_what_makes_no_sense_is_refused(values, said):
    with pytest.raises(OptionError, match=said):
        ConversionOptions(**values)


def test_the_same_precision_may_be_asked_for_twice():
    assert ConversionOptions(fp16=True, save_precision_as="fp16").precision == "fp16"
    assert ConversionOptions(float=True).precision == "float"
    assert ConversionOptions().precision == "no"


def test_metadata_is_json_or_pairs():
    assert read_metadata('{"a": "b, c", "n": 3}') == {"a": "b, c", "n": "3"}
    assert read_metadata("modelspec.title=My model, x=1=2") == {"modelspec.title": "My model", "x": "1=2"}


def test_options_that_a_target_has_no_place_for_are_told():
    names = {
        target: {name for name, _ in ConversionOptions(model_to_save=Path(target)).without_effect()}
        for target in ("a.safetensors", "a.ckpt", "folder")
    }
    assert names == {
        "a.safetensors": {"epoch", "global_step", "reference_model"},
        "a.ckpt": {"metadata", "reference_model"},
        "folder": {"epoch", "global_step", "metadata"},
    }


def test_the_word_for_no_change_of_precision_may_be_typed():
    argv = ["a", "b", "--save_precision_as", "no"]
    assert parse_options(ConvertingOptions, argv, **CONVERTING_SCRIPT).conversion.precision == "no"
    with pytest.raises(OptionError, match="--save_precision_as needs one of float, fp16, bf16, got 'yes'"):
        parse_options(ConvertingOptions, [*argv[:-1], "yes"], **CONVERTING_SCRIPT)
