"""Captioning without a model: options, what is recognised, which pictures, which words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from library.errors import CheckpointError, DatasetError, OptionError, OutputError
from library.options.spec import parse_options
from library.preparing.captioning.batching import encode_batch, picture_for
from library.preparing.captioning.feeding import one_ahead
from library.preparing.captioning.kinds import CaptionerKind, checked_prompt, read_config
from library.preparing.captioning.lengths import WordChoice, word_choice
from library.preparing.captioning.models import pads_well
from library.preparing.captioning.prompting import behind_prompt
from library.preparing.captioning.run import CaptioningRun, planned
from library.preparing.captioning.trying import check_place
from library.preparing.options.captioning import (
    CAPTIONING_SCRIPT,
    GIT_CAPTIONING_SCRIPT,
    LONG_CAPTION,
    CaptioningOptions,
    GitCaptioningOptions,
)
from library.preparing.shares import Shares

BLIP, LLAVA = CaptionerKind("blip", "", "prefix"), CaptionerKind("llava", "", "chat")


def options(*arguments: str) -> CaptioningOptions:
    return parse_options(CaptioningOptions, ["pictures", *arguments], **CAPTIONING_SCRIPT)


def test_tokens_of_the_prompt_are_cut_where_a_model_gives_them_back():
    prompt = torch.tensor([[0, 5], [7, 5]])
    assert behind_prompt(torch.tensor([[0, 5, 1], [7, 5, 2]]), prompt).tolist() == [[1], [2]]


def test_tokens_stay_where_a_model_gives_new_ones_only():
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(behind_prompt(tokens, torch.tensor([[5, 5]])), tokens)


# Which pictures


def test_pictures_with_a_caption_are_kept_and_empty_ones_counted(tmp_path: Path):
    for name, text in (("a", "mine"), ("b", " \n"), ("c", "")):
        (tmp_path / f"{name}.txt").write_text(text)
    own = [(tmp_path / f"{name}.png", f"{name}.png") for name in "abcd"]
    work = planned(own, ".txt", [path for path, _ in own], is_anew=False)
    assert (list(work.names.values()), work.num_kept, work.num_blank) == (["d.png"], 3, 2)


def test_everything_is_done_anew_when_asked(tmp_path: Path):
    (tmp_path / "a.txt").write_text("mine")
    work = planned([(tmp_path / "a.png", "a.png")], ".txt", [tmp_path / "a.png"], is_anew=True)
    assert (list(work.names), work.num_replaced) == ([tmp_path / "a.png"], 1)


def test_captions_that_will_be_overwritten_are_counted(tmp_path: Path, caplog):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.caption").write_text("mine")
    with caplog.at_level("INFO"):
        CaptioningRun(parse_options(CaptioningOptions, [str(tmp_path), "--overwrite"], **CAPTIONING_SCRIPT)).plan()
    assert "2 pictures to caption, 1 caption will be overwritten" in caplog.text


def test_pictures_that_share_a_file_with_one_of_another_process_are_faults(tmp_path: Path):
    every = [tmp_path / name for name in ("a.jpg", "a.png", "b.png")]
    parts = [Shares(rank, 2).own([(path, path.name) for path in every]) for rank in (0, 1)]
    works = [planned(part, ".txt", every, is_anew=False) for part in parts]
    assert [list(work.names.values()) for work in works] == [["b.png"], []]
    assert [fault.picture.name for work in works for fault in work.faults] == ["a.jpg", "a.png"]


def test_a_picture_that_a_model_refuses_is_left_out_of_its_batch():
    def encode(images):
        if "long" in images:
            raise ValueError("too long")
        return {"pixel_values": images}

    faults = []
    batch = [(Path(name), name) for name in ("a", "long", "b")]
    assert encode_batch(batch, encode, faults) == [([Path("a"), Path("b")], {"pixel_values": ["a", "b"]})]
    assert [str(fault.path) for fault in faults] == ["long"]


@pytest.mark.parametrize(("lengths", "number"), [((3, 3), 1), ((3, 5), 2)])
def test_prompts_of_different_lengths_stay_alone_where_they_have_to(lengths: tuple[int, int], number: int):
    def encode(images):
        mask = torch.zeros(len(images), max(images), dtype=torch.long)
        for row, length in zip(mask, images, strict=True):
            row[len(row) - length :] = 1
        return {"attention_mask": mask}

    batch = [(Path(str(index)), length) for index, length in enumerate(lengths)]
    parts = encode_batch(batch, encode, [], may_pad=False)
    assert len(parts) == number and [path for paths, _ in parts for path in paths] == [Path("0"), Path("1")]
    assert len(encode_batch(batch, encode, [], may_pad=True)) == 1


def test_pictures_that_are_too_much_together_are_encoded_alone_and_the_one_that_is_too_much_named():
    def encode(images):
        if len(images) > 1 or images == ["huge"]:
            raise MemoryError
        return {"pixel_values": images}

    faults = []
    parts = encode_batch([(Path(name), name) for name in ("a", "huge", "b")], encode, faults)
    assert [paths for paths, _ in parts] == [[Path("a")], [Path("b")]]
    assert "huge cannot be given to this model (not enough memory)" in str(faults[0])


@pytest.mark.parametrize(("size", "seen"), [((400, 200), (63, 31)), ((40, 20), (40, 20)), ((2, 100), (2, 100))])
def test_pictures_are_brought_to_a_number_of_pixels_in_their_shape(tmp_path: Path, size, seen):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert picture_for(tmp_path / "a.png", max_pixels=2000).size == seen


def test_strips_are_refused(tmp_path: Path):
    Image.new("RGB", (2, 101)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="50 times"):
        picture_for(tmp_path / "a.png", max_pixels=None)


def test_only_a_model_that_is_known_to_pad_badly_has_its_pictures_alone():
    assert not pads_well("qwen2_5_vl", "4.56.2")
    assert pads_well("qwen2_5_vl", "4.57.0") and pads_well("llava", "4.54.0")


def test_a_message_without_a_place_for_its_picture_is_refused():
    config = SimpleNamespace(image_token_index=7)
    check_place(LLAVA, torch.tensor([[1, 7, 2]]), config)
    with pytest.raises(CheckpointError, match="no place for the picture"):
        check_place(LLAVA, torch.tensor([[1, 2]]), config)


def test_what_is_made_ahead_comes_in_order_and_raises_in_its_turn():
    def items():
        yield from (1, 2)
        raise OSError("gone")

    source, got = one_ahead(items()), []
    with pytest.raises(OSError, match="gone"):
        for item in source:
            got.append(item)
    assert got == [1, 2]


# Options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--caption_weights=https://x.org/model_large_caption.pth"],
            "web address. Give Salesforce/.* the same weights",
        ),
        (["--model=sd1.safetensors"], r"single weights file. Give a captioner: .* for instance Salesforce/\S+\.$"),
        (["--device=gpu"], "--device gpu is no device. Give cpu, cuda"),
        (["--model="], "empty"),
        (["--load_in_8bit", "--load_in_4bit"], "exclude"),
        (["--min_length=80", "--max_length=75"], "above --max_length 75"),
        (["--min_length=301"], "above --max_length 300"),
        (["--caption_extension=.JPG"], "ending of text files"),
        (["--caption_extension=."], "ending of text files"),
        (["--caption_extension=.safetensors"], "files of other kinds"),
        (["--caption_extension=_sd3.npz"], "files of other kinds"),
        (["--caption_separator=\n"], "without line breaks"),
        (["--postfix=a\rb"], "without line breaks"),
        (["--trigger_word= "], "--trigger_word must not be empty"),
        (["--top_p=0"], "must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], said: str):
    with pytest.raises(OptionError, match=said):
        options(*arguments)


def test_of_the_weights_in_a_folder_of_a_model_the_folder_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OptionError, match=rf"single weights file. Name its folder, {re.escape(str(tmp_path))}\.$"):
        options(f"--model={tmp_path / 'model.safetensors'}")


def test_git_is_named_as_older_scripts_name_it():
    options = parse_options(GitCaptioningOptions, ["pictures", "--model_id=a/git"], **GIT_CAPTIONING_SCRIPT)
    assert options.captioner.model == "a/git"


def test_a_folder_that_takes_no_files_is_told_before_the_model_is_looked_for(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.caption").symlink_to("/proc/a.caption")
    captioning = CaptioningRun(
        parse_options(CaptioningOptions, [str(tmp_path), "--model=no/where"], **CAPTIONING_SCRIPT)
    )
    with pytest.raises(OutputError, match="no file can be written there"):
        captioning.run()


def test_an_extension_may_come_without_its_dot_and_under_its_other_name():
    assert options("--caption_extention=txt").files.extension == ".txt"


def test_options_of_draws_are_told_to_have_no_effect_on_a_search():
    assert any("--top_p" in line for line in options("--beam_search", "--top_p=0.5").warnings)
    assert any("--num_beams" in line for line in options("--num_beams=3").warnings)


def chosen(kind: CaptionerKind, *arguments: str, num_prompt: int = 1, room: int | None = None) -> WordChoice:
    return word_choice(options(*arguments), kind, num_prompt=num_prompt, room=room)


def test_models_that_are_told_what_to_do_have_longer_captions_by_default():
    assert chosen(LLAVA).max_length == LONG_CAPTION
    assert chosen(BLIP).max_length == 75
    assert chosen(LLAVA, "--max_length=75").max_length == 75


def test_the_default_length_is_no_more_than_a_model_has_room_for():
    assert chosen(LLAVA, num_prompt=20, room=100).max_length == 80
    with pytest.raises(OptionError, match="Give at most 80"):
        chosen(LLAVA, "--max_length=81", num_prompt=20, room=100)


def test_the_shortest_caption_is_compared_with_the_longest_of_the_model():
    assert chosen(LLAVA, "--min_length=100").min_length == 100
    with pytest.raises(OptionError, match="above --max_length 75"):
        chosen(BLIP, "--min_length=100")


def test_a_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(OptionError, match="75 tokens"):
        chosen(BLIP, num_prompt=75)
    with pytest.raises(OptionError, match="no room"):
        chosen(LLAVA, num_prompt=100, room=100)


def test_the_git_script_has_a_git_and_one_option_more():
    git = parse_options(GitCaptioningOptions, ["pictures", "--remove_words"], **GIT_CAPTIONING_SCRIPT)
    assert git.captioner.model == "microsoft/git-large-textcaps" and git.files.remove_words


# Kinds


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no config.json"),
        ({"adapter_config.json": "{}"}, "adapter"),
        ({"config.json": "{"}, "cannot be read"),
        ({"config.json": "[]"}, "no model_type"),
    ],
)
def test_a_folder_without_a_model_is_told(tmp_path: Path, files: dict[str, str], said: str):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model_index.json", "is a model that draws pictures and does not describe them. Choose a captioner"),
        ("model.onnx", r"is a tagger. Give it to finetune/tag_images_by_wd14_tagger.py, or choose a captioner"),
    ],
)
def test_a_model_of_another_kind_is_told_to_be_one(tmp_path: Path, name: str, said: str):
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=said):
        read_config(tmp_path)


def test_the_settings_of_a_folder_are_read(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    assert read_config(tmp_path)["model_type"] == "blip"


def test_a_task_is_needed_where_a_model_takes_one():
    florence = CaptionerKind("florence2", "", "task", "<DETAILED_CAPTION>")
    assert checked_prompt(florence, None) == "<DETAILED_CAPTION>"
    with pytest.raises(CheckpointError, match="takes a task"):
        checked_prompt(florence, "a dog")


def test_words_are_refused_where_a_model_takes_none():
    with pytest.raises(CheckpointError, match="takes no words"):
        checked_prompt(CaptionerKind("vision-encoder-decoder", "", "none"), "a dog")
