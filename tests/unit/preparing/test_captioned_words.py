"""Words of captioners: drawn, put together, and what stands in a line."""

from __future__ import annotations

import pytest
import torch

from library.preparing.captioning.keyed_draws import KeyedDraws, gumbel, nucleus
from library.preparing.captioning.wording import finished_caption, joined_pieces, without_writing

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
INF = float("inf")


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


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_all_tokens_in_order(spread: float):
    scores = spread * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    scores[1] *= 3.0
    ordered = scores.softmax(-1).sort(descending=True).values
    number = (ordered.cumsum(-1) - ordered < 0.9).sum(-1)
    assert (nucleus(scores, 0.9).isfinite().sum(-1) - number).abs().max() <= 1  # the last one by rounding
    assert torch.equal(nucleus(scores, 0.9).argmax(-1), scores.argmax(-1))


def test_a_drawn_number_of_zero_excludes_no_token():
    assert gumbel(torch.tensor([0.0, 0.5, 1 - 2**-24])).isfinite().all()


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
        ("a dog. It runs.", "zorp, a dog. It runs, photo"),
        ("zorp, a photo.", "zorp, a photo."),
        ("a telephoto", "zorp, a telephoto, photo"),
    ],
)
def test_trigger_word_and_postfix_are_said_once(text: str, caption: str):
    assert finished_caption(text, trigger_word="zorp ", postfix=" photo", separator=", ") == caption


def test_a_full_stop_stays_before_a_postfix_that_only_a_blank_separates():
    assert finished_caption("A dog.", trigger_word=None, postfix="A photo.", separator=" ") == "A dog. A photo."


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ("a man ' s t - shirt , and a cat .", "a man's t-shirt, and a cat."),
        ("the dogs ' bowl isn ' t here ( red )", "the dogs' bowl isn't here (red)"),
        ("with the words ' go home ' on it", "with the words 'go home' on it"),
        ('the word " stop "', 'the word "stop"'),
        ("a photo - a man and a t - shirt", "a photo - a man and a t-shirt"),
    ],
)
def test_signs_are_put_to_the_words_that_they_belong_to(pieces: str, text: str):
    assert joined_pieces(pieces) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a red sign with the words stop on it", "a red sign"),
        ("a shirt with the words made in china on it", "a shirt"),
        ("a poster with the words 50% off on it", "a poster"),
        ("two players with the numbers 3 and 7 on their shirts", "two players"),
        ("a cake with the words happy birthday to you, mom on it", "a cake"),
        ("a man with the number 5 standing next to a dog", "a man with the number 5 standing next to a dog"),
        ("a man with the words happy new day on his shirt next to a car", "a man next to a car"),
        ('a sign that says "go home" on the wall of a house', "a sign on the wall of a house"),
        ("a poster with the number 5 and a dog", "a poster and a dog"),
        ("a cat with a ball on a mat", "a cat with a ball on a mat"),
        ("a man with the name tag on his shirt", "a man with the name tag on his shirt"),
        ("a woman with a letter from her son", "a woman with a letter from her son"),
        ("a bus with the number 5 on the front of it", "a bus"),
        ("a book with the words harry potter and the philosopher's stone on the cover", "a book"),
        ("a poster with the words sale and a dog on the mat", "a poster and a dog on the mat"),
    ],
)
def test_what_git_reads_into_pictures_can_be_left_out(text: str, left: str):
    assert without_writing(text) == left
