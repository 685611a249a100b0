"""Caption rules beyond the golden values: what is fixed, what conflicts, where draws come from."""

import random

import pytest

from library.data.plan.captions import CaptionRules, apply_caption_rules, cache_conflicts, fixed_caption


def apply(caption, draw=None, *, epoch=1, step=0, max_steps=100, replacements=None, **options):
    rules = CaptionRules(**options)
    draw = draw or random.Random(0)
    return apply_caption_rules(
        caption, rules, draw=draw, epoch=epoch, step=step, max_steps=max_steps, replacements=replacements
    )


def test_equal_draws_give_equal_captions():
    options = {"shuffle_caption": True, "caption_tag_dropout_rate": 0.3, "caption_dropout_rate": 0.1}
    captions = [[apply("a, b, c, d, e", random.Random(seed), **options) for seed in range(20)] for _ in range(2)]
    assert captions[0] == captions[1]
    assert len(set(captions[0])) > 10


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"shuffle_caption": True}, "shuffle_caption"),
        ({"caption_tag_dropout_rate": 0.1}, "caption_tag_dropout_rate"),
        ({"enable_wildcard": True}, "enable_wildcard"),
    ],
)
def test_rules_that_need_variants_to_be_cached(options, name):
    assert cache_conflicts(CaptionRules(**options)) == (name,)
    assert cache_conflicts(CaptionRules(**options), has_variants=True) == ()


@pytest.mark.parametrize("has_variants", [False, True])
def test_warm_up_can_never_be_cached(has_variants):
    assert cache_conflicts(CaptionRules(token_warmup_step=10), has_variants) == ("token_warmup_step",)


@pytest.mark.parametrize("has_variants", [False, True])
def test_dropout_of_whole_captions_can_be_cached(has_variants):
    rules = CaptionRules(caption_dropout_rate=0.1, caption_dropout_every_n_epochs=3)
    assert cache_conflicts(rules, has_variants) == ()


def test_fixed_rules_can_be_cached():
    rules = CaptionRules(
        caption_prefix="a photo of",
        caption_suffix=";;; film",
        secondary_separator=";;;",
        keep_tokens=1,
        keep_tokens_separator="|||",
    )
    assert cache_conflicts(rules) == ()
    assert fixed_caption("cat;;;dog\nsecond line", rules) == "a photo of cat,dog , film"
    assert fixed_caption("cat ||| dog", rules) == "a photo of cat ||| dog , film"


def test_fixed_caption_leaves_out_chance():
    rules = CaptionRules(shuffle_caption=True, caption_dropout_rate=1.0, enable_wildcard=True, caption_prefix="p")
    assert fixed_caption("c, b, {a|b}", rules) == "p c, b, {a|b}"


def test_escaped_braces_inside_a_wildcard():
    assert {apply("{a|{{b}}}", random.Random(seed), enable_wildcard=True) for seed in range(20)} == {"a", "{b}"}


def test_every_line_has_prefix_and_suffix():
    options = {"caption_prefix": "P", "caption_suffix": "{s|t}", "enable_wildcard": True}
    texts = {apply("one\ntwo\nthree", random.Random(seed), **options) for seed in range(60)}
    assert texts == {f"P {line} {end}" for line in ("one", "two", "three") for end in "st"}
    assert fixed_caption("one\ntwo", CaptionRules(**options)) == "P one {s|t}"


def test_braces_stay_without_wildcards():
    assert apply("{a|b} {{c}}") == "{a|b} {{c}}"


def test_warm_up_never_uses_more_tags_than_there_are():
    assert apply("a, b", token_warmup_step=10, token_warmup_min=5, step=3) == "a, b"
    assert apply("a, b, c", token_warmup_step=10, token_warmup_min=0, step=0) == ""


def test_warm_up_as_a_fraction_of_the_run():
    assert apply("a, b, c, d", token_warmup_step=0.5, token_warmup_min=0, step=25, max_steps=100) == "a, b"
    assert apply("a, b, c, d", token_warmup_step=0.5, token_warmup_min=0, step=50, max_steps=100) == "a, b, c, d"


def test_replacements():
    assert apply("sks dog", replacements={"sks": "t1 t2"}) == "t1 t2 dog"
    texts = {apply("sks dog", random.Random(seed), replacements={"": ["x", "y"]}) for seed in range(20)}
    assert texts == {"x", "y"}
