"""Texts that are too long are told, with what reads more of them."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from library.families.sd3.family import Sd3Family
from library.families.sdxl.family import SdxlFamily
from library.models.tokenizers import TextTokenizer
from library.models.vocabulary import Vocabulary
from library.training.encoding.caching import TextCaching
from library.training.encoding.encoding_setup import EncodingSetup
from library.training.encoding.unread_words import tell_unread_of_run, tell_unread_words

NAMES = ("clip_l", "clip_g", "t5xxl")


def tokenizer(name):
    words = Vocabulary("clip", Path(), {}, lambda caption: [10 for _ in caption.split()], lambda *_: None)
    is_t5 = name == "t5xxl"
    return TextTokenizer(name, words, None if is_t5 else 77, None if is_t5 else 97, 98, 0)


def told(caplog, family, captions, prompts=()):
    caplog.set_level(logging.WARNING)
    tell_unread_words(family, {name: tokenizer(name) for name in family.encoder_names}, captions, prompts)
    return [record.getMessage() for record in caplog.records]


def words(number):
    return " ".join(["word"] * number)


@pytest.mark.parametrize(
    ("rows", "number", "advice"),
    [
        (1, 76, "--max_token_length 150 reads more."),
        (1, 150, "--max_token_length 150 reads more."),
        (1, 151, "--max_token_length 225 reads more."),
        (2, 300, "--max_token_length 225 reads more."),
        (3, 300, "Shorten it."),
    ],
)
def test_a_caption_that_is_too_long_is_told_with_what_reads_more(caplog, rows, number, advice):
    (line,) = told(caplog, SdxlFamily(pretrained=Path(), num_chunks=rows), ["a cat", words(number)])
    assert line.startswith(f"1 caption is longer than the {75 * rows + 2} tokens that the text encoders read")
    assert f"The longest has {number + 2}: 'word word " in line and line.endswith(advice)


def test_texts_that_are_read_to_the_end_are_not_told(caplog):
    assert told(caplog, SdxlFamily(pretrained=Path(), num_chunks=2), [words(150), ""], [words(150)]) == []


def test_sample_prompts_are_told_apart(caplog):
    (line,) = told(caplog, SdxlFamily(pretrained=Path()), [words(75)], [words(80), words(90)])
    assert line.startswith("2 sample prompts are longer than the 77 tokens") and "is not drawn" in line


def test_what_one_encoder_reads_to_the_end_is_not_told(caplog):
    family = Sd3Family(pretrained=Path(), t5_length=100, dropout_rates={}, flow={})
    (line,) = told(caplog, family, [words(90), words(120)])
    assert line.startswith("1 caption is longer than the 100 tokens") and line.endswith("Shorten it.")


@pytest.fixture
def setup_of(tiny_sd3):
    """setup_of(is_main_process) of a run that has no pictures."""

    def make(is_main_process):
        family = Sd3Family(pretrained=tiny_sd3, t5_length=100, dropout_rates={}, flow={})
        plan = SimpleNamespace(records=(), possible_captions=tuple)
        accelerator = Accelerator(cpu=True) if is_main_process else SimpleNamespace(is_main_process=False)
        return EncodingSetup(family, family.inspect(), plan, accelerator, torch.float32, 1, to_disk=False)

    return make


def untold(caplog):
    return [record for record in caplog.records if "is not drawn" in record.getMessage()]


@pytest.mark.parametrize(
    ("names", "is_main_process", "number"), [(NAMES, True, 1), (NAMES, False, 0), (NAMES[1:], True, 0)]
)
def test_one_process_tells_where_all_tokenizers_are_known(caplog, setup_of, names, is_main_process, number):
    tell_unread_of_run(setup_of(is_main_process), {name: tokenizer(name) for name in names}, [words(120)])
    assert len(untold(caplog)) == number


def test_cached_states_beside_live_encoders_are_told_once(caplog, setup_of):
    live, cached = NAMES[:2], NAMES[2:]
    caching = TextCaching(setup_of(True), cached, [words(120)])
    caching.prepare({name: tokenizer(name) for name in live})
    assert len(untold(caplog)) == 1
