"""Weights inside captions: what each bracket does, and where the words stand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.models.weighted_prompts import has_open_bracket, phrases


def read(caption):
    return [(phrase.text, pytest.approx(phrase.weight)) for phrase in phrases(caption)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red cat", [("a red cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a [red] cat", [("a ", 1), ("red", 1 / 1.1), (" cat", 1)]),
        ("a ((red)) [[cat]]", [("a ", 1), ("red", 1.21), (" ", 1), ("cat", 1 / 1.21)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("(red : .5 )", [("red ", 0.5)]),
        ("(red:-1)(cat:+2)", [("red", -1), ("cat", 2)]),
        ("(a (red:2) cat:1.5)", [("a ", 1.5), ("red", 3), (" cat", 1.5)]),
        ("([red])", [("red", 1)]),
        ("[(red:2)]", [("red", 2 / 1.1)]),
        ("(red)(cat)", [("redcat", 1.1)]),
        ("(red:1) cat", [("red cat", 1)]),
        ("() cat []", [(" cat ", 1)]),
        ("", []),
    ],
)
def test_brackets_weigh_what_is_inside(caption, expected):
    assert read(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (r"a \(red\) \[cat\]", [("a (red) [cat]", 1)]),
        (r"(a \(red\):2)", [("a (red)", 2)]),
        (r"a \\ b", [("a \\ b", 1)]),
        (r"a\b", [("ab", 1)]),
        ("a \\", [("a ", 1)]),
    ],
)
def test_a_backslash_takes_the_meaning_from_a_bracket(caption, expected):
    assert read(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a (red cat", [("a ", 1), ("red cat", 1.1)]),
        ("a [red (cat", [("a ", 1), ("red ", 1 / 1.1), ("cat", 1)]),
        ("a red) cat]", [("a red) cat]", 1)]),
        ("a red:1.5) cat", [("a red:1.5) cat", 1)]),
        ("(red:much)", [("red:much", 1.1)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("at 10:30", [("at 10:30", 1)]),
        ("[red:0.5]", [("red:0.5", 1 / 1.1)]),
    ],
)
def test_what_is_not_closed_not_opened_or_no_number(caption, expected):
    assert read(caption) == expected


@given(st.text(st.sampled_from("ab ():[]\\1.5é猫")))
def test_places_lead_to_the_characters_of_any_caption_in_order(caption):
    found = phrases(caption)
    places = [place for phrase in found for place in phrase.places]
    assert places == sorted(set(places))
    assert "".join(phrase.text for phrase in found) == "".join(caption[place] for place in places)
    assert all(one.weight != other.weight for one, other in pairwise(found))


@pytest.mark.parametrize("caption", ["a (red cat", "a [red cat", "(a (red:1.3) cat", "a (red] cat"])
def test_an_open_bracket_is_seen(caption):
    assert has_open_bracket(caption)


@pytest.mark.parametrize("caption", ["a (red) [cat]", r"a \(red cat", "a red) cat]", "a (red:1.3) cat:2)"])
def test_what_is_closed_or_was_never_opened_is_no_open_bracket(caption):
    assert not has_open_bracket(caption)
