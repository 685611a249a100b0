"""Captioning without a model: options, what is recognised, which pictures, which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from library.errors import CheckpointError, OptionError
from library.options.spec import parse_options
from library.preparing.captioning.feeding import one_ahead
from library.preparing.captioning.keyed_draws import KeyedDraws, nucleus
from library.preparing.captioning.kinds import CaptionerKind, checked_prompt, read_config
from library.preparing.captioning.prompting import behind_prompt
from library.preparing.captioning.run import encode_batch, planned, word_choice
from library.preparing.captioning.wording import finished_caption, without_writing
from library.preparing.options.captioning import (
    CAPTIONING_SCRIPT,
    GIT_CAPTIONING_SCRIPT,
    LONG_CAPTION,
    CaptioningOptions,
    GitCaptioningOptions,
)
from library.preparing.shares import Shares

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
INF = float("inf")


def options(*arguments: str) -> CaptioningOptions:
    return parse_options(CaptioningOptions, ["pictures", *arguments], **CAPTIONING_SCRIPT)


def draws(*names: str, seed: int = 1, top_p: float = 1.0, temperature: float = 1.0) -> KeyedDraws:
    return KeyedDraws(names, seed=seed, top_p=top_p, temperature=temperature)


def tokens_of(draw: KeyedDraws, number: int, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    """Shape [number, B]."""
    rows = logits.expand(len(draw._generators), -1)
    return torch.stack([draw(torch.zeros(len(rows), 1), rows).argmax(-1) for _ in range(number)])


# Words drawn


def test_a_nucleus_has_the_likeliest_tokens_up_to_its_chance():
    assert nucleus(LOGITS, 0.7).isfinite().tolist() == [[True, True, False, False]]


def test_a_nucleus_always_has_one_token():
    assert nucleus(LOGITS, 1e-6).isfinite().sum() == 1


def test_a_nucleus_of_all_chances_leaves_the_scores_alone():
    assert torch.equal(nucleus(LOGITS, 1.0), LOGITS)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    drawn = tokens_of(draws("a"), 4000).flatten()
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, LOGITS.exp()[0], atol=0.03)


def test_tokens_outside_the_nucleus_are_never_drawn():
    assert tokens_of(draws("a", top_p=0.7), 300).max() <= 1


def test_a_high_temperature_flattens_the_chances():
    drawn = tokens_of(draws("a", temperature=50.0), 2000)
    assert (drawn == 3).float().mean() == pytest.approx(0.25, abs=0.04)


def test_what_a_picture_draws_does_not_depend_on_its_neighbours():
    together, alone = tokens_of(draws("x", "y", "z"), 40), tokens_of(draws("y"), 40)
    assert torch.equal(together[:, 1:2], alone)


def test_pictures_and_seeds_have_draws_of_their_own():
    flat = torch.zeros(1, 1000)
    first = tokens_of(draws("x"), 5, flat)
    assert not torch.equal(first, tokens_of(draws("y"), 5, flat))
    assert not torch.equal(first, tokens_of(draws("x", seed=2), 5, flat))


def test_a_token_without_a_chance_is_not_drawn():
    scores = torch.tensor([[-INF, -INF, 0.0]])
    assert tokens_of(draws("x"), 20, scores).unique().tolist() == [2]


# Words written


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("a dog\n runs", "zorp, a dog runs, photo"),
        ("Zorp runs", "Zorp runs, photo"),
        ("zorps run", "zorp, zorps run, photo"),
        ("zorp, a Photo", "zorp, a Photo"),
    ],
)
def test_trigger_word_and_postfix_are_said_once(text: str, caption: str):
    assert finished_caption(text, trigger_word="zorp", postfix="photo", separator=", ") == caption


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a red sign with the words stop on it", "a red sign"),
        ("a man with the words happy new day on his shirt next to a car", "a man next to a car"),
        ('a sign that says "go home" on the wall of a house', "a sign on the wall of a house"),
        ("a poster with the number 5 and a dog", "a poster and a dog"),
        ("a cat with a ball on a mat", "a cat with a ball on a mat"),
    ],
)
def test_what_git_reads_into_pictures_can_be_left_out(text: str, left: str):
    assert without_writing(text) == left


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
    assert list(work.names) == [tmp_path / "a.png"]


def test_pictures_that_share_a_file_with_one_of_another_process_are_faults(tmp_path: Path):
    every = [tmp_path / name for name in ("a.jpg", "a.png", "b.png")]
    parts = [Shares(rank, 2).own([(path, path.name) for path in every]) for rank in (0, 1)]
    works = [planned(part, ".txt", every, is_anew=False) for part in parts]
    assert [list(work.names.values()) for work in works] == [["b.png"], []]
    assert [fault.path.name for work in works for fault in work.faults] == ["a.jpg", "a.png"]


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
        (["--caption_weights=https://x.org/model_large_caption.pth"], "single weights file"),
        (["--model="], "empty"),
        (["--load_in_8bit", "--load_in_4bit"], "exclude"),
        (["--min_length=80"], "above --max_length 75"),
        (["--caption_extension=.JPG"], "ending of a text file"),
        (["--caption_extension=."], "ending of a text file"),
        (["--top_p=0"], "must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], said: str):
    with pytest.raises(OptionError, match=said):
        options(*arguments)


def test_an_extension_may_come_without_its_dot_and_under_its_other_name():
    assert options("--caption_extention=txt").files.extension == ".txt"


def test_options_of_draws_are_told_to_have_no_effect_on_a_search():
    assert any("--top_p" in line for line in options("--beam_search", "--top_p=0.5").warnings)
    assert any("--num_beams" in line for line in options("--num_beams=3").warnings)


def test_models_that_are_told_what_to_do_have_longer_captions_by_default():
    assert word_choice(options(), is_told=True).max_length == LONG_CAPTION
    assert word_choice(options(), is_told=False).max_length == 75
    assert word_choice(options("--max_length=75"), is_told=True).max_length == 75


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
