"""The world of the small model that draws."""

from __future__ import annotations

import itertools

import numpy

from examples.tiny_sd3.draw import draw, draw_anything
from examples.tiny_sd3.start import SHORT, words
from examples.tiny_sd3.tokenizers import clip_vocabulary
from examples.tiny_sd3.world import (
    COLOURS,
    PLAINS,
    SHAPES,
    Thing,
    double,
    has_held_out,
    is_held_out,
    scene,
    single,
    unseen,
    vocabulary,
)

NUM = 1000


def test_a_seed_and_a_number_give_the_same_picture_again():
    assert scene(3, 5) == scene(3, 5) != scene(3, 6)
    assert draw(scene(3, 5)).tobytes() == draw(scene(3, 5)).tobytes()
    assert draw_anything(3, 5).tobytes() == draw_anything(3, 5).tobytes()


def test_the_first_pictures_are_those_that_the_base_was_trained_on():
    assert [scene(0, index).caption for index in range(3)] == [
        "an orange cross on the sea under a blue sky",
        "a yellow circle to the left of a blue heart on a black background",
        "a large red cross on a yellow background",
    ]
    sums = [int(numpy.asarray(draw(scene(0, index)), dtype=int).sum()) for index in range(3)]
    assert sums == [1781734, 593801, 1897485]


def test_combinations_that_are_held_out_are_never_drawn_and_all_that_is_unseen_is_held_out():
    assert not any(has_held_out(scene(0, index)) for index in range(NUM))
    assert all(has_held_out(unseen(0, index)) for index in range(50))
    held_out = [
        is_held_out(shape, colour, background) for shape in SHAPES for colour in COLOURS for background in PLAINS
    ]
    assert 0.08 < sum(held_out) / len(held_out) < 0.12


def test_every_word_of_a_caption_is_in_the_vocabulary():
    known = set(vocabulary())
    assert len(known) < 120
    for index in range(NUM):
        spoken = scene(0, index).caption.split()
        assert known.issuperset(spoken)
        assert len(spoken) + 2 <= SHORT


def test_every_word_is_one_token_of_clip():
    vocab, merges = clip_vocabulary(words())
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for word in words():
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while known := [(ranks[pair], at) for at, pair in enumerate(itertools.pairwise(pieces)) if pair in ranks]:
            at = min(known)[1]
            pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
        assert len(pieces) == 1 and pieces[0] in vocab, word


def test_kinds_have_their_shares():
    scenes = [scene(0, index) for index in range(NUM)]
    assert 0.22 < sum(len(what.things) == 2 for what in scenes) / NUM < 0.34
    assert 0.15 < sum(what.landscape is not None for what in scenes) / NUM < 0.25
    assert 0.15 < sum(any(thing.pattern for thing in what.things) for what in scenes) / NUM < 0.28


def test_scenes_can_be_made_from_parts():
    one = single("star", "red", "on a blue background", pattern="striped", size="small", place="at the top left")
    assert one.caption == "a small striped red star at the top left on a blue background"
    two = double(Thing("heart", "orange"), Thing("cross", "pink", "dotted"), "above", "on sand at night")
    assert two.caption == "an orange heart above a dotted pink cross on sand at night"
    assert two.things[0].y < two.things[1].y
