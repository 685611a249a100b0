"""Rows of tokens: the layout for short and long captions, weights, and where a caption is cut."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.models.token_chunks import RowTokenizer
from library.models.tokenizers import TextTokenizer
from library.models.vocabulary import Vocabulary

START, END = 97, 98


def spans(caption):
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", caption)]


def start_of(caption, number):
    return spans(caption)[number][0] if number < len(spans(caption)) else None


# A token for each word or sign; its id is 10 + its length.
VOCABULARY = Vocabulary("clip", None, {}, lambda caption: [10 + end - start for start, end in spans(caption)], start_of)


def rows(num_chunks=1, is_weighted=False, pad=END):
    return RowTokenizer(TextTokenizer("clip", VOCABULARY, 77, START, END, pad), num_chunks, is_weighted)


def as_published(words, num_chunks, pad):
    """The rule of the other trainer: the whole caption is padded once, then cut up, then ends are mended."""
    whole = [START, *words[: 75 * num_chunks], END]
    whole += [pad] * (75 * num_chunks + 2 - len(whole))
    chunks = []
    for number in range(num_chunks):
        chunk = [whole[0], *whole[1 + 75 * number : 76 + 75 * number], whole[-1]]
        if chunk[-2] not in (END, pad):
            chunk[-1] = END
        if chunk[1] == pad:
            chunk[1] = END
        chunks += chunk
    return chunks


@given(st.integers(0, 240), st.integers(1, 3), st.sampled_from([END, 0]))
def test_rows_are_those_of_the_published_rule(num_words, num_chunks, pad):
    read = rows(num_chunks, pad=pad).encode("word " * num_words)
    assert read.ids == as_published([14] * num_words, num_chunks, pad)


def test_a_row_that_nothing_is_left_for_has_begin_and_end():
    read = rows(3, pad=0).encode("word " * 75)
    assert read.ids[:77] == [START, *[14] * 75, END]
    assert read.ids[77:154] == read.ids[154:] == [START, END, *[0] * 75]
    assert read.mask == [1] * 77 + ([1] * 2 + [0] * 75) * 2


def test_one_row_is_what_the_tokenizer_itself_gives():
    for caption in ("", "a red cat", "word " * 90):
        for pad in (END, 0):
            one = rows(pad=pad)
            assert tuple(one.encode(caption)[:2]) == one.tokenizer.encode(caption, 77)


def test_weights_stand_at_the_tokens_of_their_words_and_are_1_elsewhere():
    read = rows(2, is_weighted=True).encode("a (red cat:1.5) " + "word " * 72 + "(hat:2) sits")
    assert read.weights[:5] == [1, 1, 1.5, 1.5, 1]
    assert read.weights[77:80] == [1, 2, 1] and read.ids[77:81] == [START, 13, 14, END]
    assert sum(weight != 1 for weight in read.weights) == 3
    assert len(read.weights) == len(read.ids) == 2 * 77


def test_brackets_are_words_where_captions_are_not_weighted():
    assert rows().token_count("a (red cat:1.5)") == 2 + 9
    assert rows(is_weighted=True).token_count("a (red cat:1.5)") == 2 + 3
    assert set(rows().encode("a (red cat:1.5)").weights) == {1.0}


@pytest.mark.parametrize("num_chunks", [1, 2, 3])
def test_a_caption_is_cut_at_the_first_word_that_is_not_read(num_chunks):
    fits = "word " * (75 * num_chunks)
    for is_weighted in (False, True):
        assert rows(num_chunks, is_weighted).cut_at(fits) is None
        assert rows(num_chunks, is_weighted).cut_at(fits + "end") == len(fits)
    assert rows(num_chunks).length == 75 * num_chunks + 2 == rows(num_chunks).token_count(fits)


def test_the_cut_of_a_weighted_caption_is_counted_in_the_caption_as_it_is_written():
    caption = r"(red \(cat\):1.3) " + "word " * 71 + "[end]"
    assert rows(is_weighted=True).cut_at(caption) == caption.index("end")
    assert rows(is_weighted=True).token_count(caption) == 2 + 76
