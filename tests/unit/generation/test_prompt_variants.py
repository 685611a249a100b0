"""Braces with variants in prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.errors import OptionError
from library.generation.prompt_variants import MAX_VARIANTS, expand_variants


def drawn(text: str, number: int = 60) -> set[str]:
    return set(expand_variants(text, seed=1, number=number))


@pytest.mark.parametrize("text", ["a cat", "a {cat}", "a { b", "}|{", "", "a (cat:1.2)"])
def test_texts_without_variants_stay(text):
    assert expand_variants(text, seed=1, number=2) == [text, text]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("a {red|green} car", {"a red car", "a green car"}),
        ("{a|b} {c|}", {"a c", "b c", "a ", "b "}),
        ("{2$$a|b|c}", {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{1-2$$+$$a|b}", {"a", "b", "a+b", "b+a"}),
        ("{-1$$a|b}", {"a", "b"}),
        ("{2-$$+$$a|b}", {"a+b", "b+a"}),
        ("{0-1$$a}", {"", "a"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("a cat --w {64|128}", {"a cat --w 64", "a cat --w 128"}),
    ],
)
def test_choices_by_chance(text, prompts):
    assert drawn(text) == prompts


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("{e$$a|b}", ["a", "b"]),
        ("{E$$a|b} {e$$1|2}", ["a 1", "a 2", "b 1", "b 2"]),
        ("{e$$2$$+$$a|b|c}", ["a+b", "a+c", "b+c"]),
        ("{e$$1-2$$a|b}", ["a", "b", "a, b"]),
    ],
)
def test_every_choice_in_turn(text, prompts):
    assert expand_variants(text, seed=1, number=7) == prompts


def test_choices_by_chance_beside_every_choice():
    prompts = expand_variants("{e$$a|b|c} {1|2}", seed=3)
    assert [prompt[0] for prompt in prompts] == ["a", "b", "c"]
    assert {prompt[2] for prompt in prompts} <= {"1", "2"}


@given(st.integers(0, 2**40), st.integers(1, 8))
def test_the_seed_alone_decides(seed, number):
    text = "{a|b|c|d} {1-3$$x|y|z}"
    prompts = expand_variants(text, seed=seed, number=number)
    assert prompts == expand_variants(text, seed=seed, number=number + 1)[:number]


def test_another_seed_gives_other_prompts():
    text = "{a|b|c|d|e|f|g|h}"
    assert expand_variants(text, seed=1, number=20) != expand_variants(text, seed=2, number=20)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{3$$a|b}", "asks for 3 of 2"),
        ("{2-1$$a|b}", "asks for 2 to 1 of 2"),
        ("{e$$1$$x$$y$$a|b}", "too many $$"),
        (" ".join(["{e$$0|1|2|3|4|5|6|7|8|9}"] * 5), f"more than {MAX_VARIANTS:,} prompts"),
    ],
)
def test_what_cannot_be_is_named(text, sentence):
    with pytest.raises(OptionError) as error:
        expand_variants(text, seed=1, place="file line 3")
    assert sentence in str(error.value)
    assert str(error.value).startswith("file line 3: ")
