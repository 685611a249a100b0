"""Texts that are too long are told, with what reads more of them."""

import logging
from pathlib import Path

import pytest

from library.families.sd3.family import Sd3Family
from library.families.sdxl.family import SdxlFamily
from library.models.tokenizers import TextTokenizer
from library.models.vocabulary import Vocabulary
from library.training.encoding.unread_words import tell_unread_words


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
