"""Caption variants for a text cache, and the choice among them."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

from library.data.config.specs import SubsetSpec
from library.data.plan.captions import CaptionRules, apply_caption_rules
from library.data.plan.variants import caption_variants, choose_caption, variant_findings
from library.records import ImageRecord, Size


def record(caption, name="a.png", key="x/a.png"):
    return ImageRecord(Path("x") / name, key, caption, Size(64, 64), 1, 0, 0)


def variants_of(record, rules, number, folder="x"):
    return caption_variants(record, SubsetSpec(image_dir=Path(folder), captions=rules), number)


def test_one_fixed_caption_without_a_number():
    rules = CaptionRules(shuffle_caption=True, caption_prefix="p", caption_dropout_rate=1.0, token_warmup_step=5)
    assert variants_of(record("b, a"), rules, None) == ("p b, a",)


def test_variants_that_no_rule_makes_are_one_note():
    fixed = CaptionRules(caption_dropout_rate=0.5, token_warmup_step=5)
    (note,) = variant_findings([fixed, fixed], 10).notes
    assert note.startswith("--text_encoder_cache_variants has no effect: no subset has shuffle_caption")
    assert variant_findings([fixed], None).notes == ()
    for key in ({"shuffle_caption": True}, {"caption_tag_dropout_rate": 0.1}, {"enable_wildcard": True}):
        assert variant_findings([fixed, CaptionRules(**key)], 10).notes == ()


def test_variants_are_the_same_every_time_and_differ_between_pictures():
    rules = CaptionRules(shuffle_caption=True, keep_tokens=1)
    first = variants_of(record("sks, a, b, c, d"), rules, 8)
    assert len(set(first)) > 4
    assert all(text.startswith("sks, ") for text in first)
    assert variants_of(record("sks, a, b, c, d", key="1.0/x/a.png"), rules, 8) == first
    assert variants_of(record("sks, a, b, c, d", name="b.png"), rules, 8) != first
    assert variants_of(record("sks, a, b, c, d"), rules, 5) == first[:5]


def test_variants_follow_the_path_below_the_folder_of_pictures():
    rules = CaptionRules(shuffle_caption=True)
    one, two = (record("a, b, c, d, e", name=f"{folder}/front.png") for folder in ("s0", "s1"))
    assert variants_of(one, rules, 8) != variants_of(two, rules, 8)
    elsewhere = replace(one, path=Path("/y/z/s0/front.png"))
    assert variants_of(elsewhere, rules, 8, folder="/y/z") == variants_of(one, rules, 8)


def test_equal_texts_are_one_variant():
    assert variants_of(record("a, b"), CaptionRules(), 10) == ("a, b",)
    assert variants_of(record("a"), CaptionRules(shuffle_caption=True), 10) == ("a",)


def test_dropout_and_warm_up_do_not_act_on_variants():
    rules = CaptionRules(caption_dropout_rate=1.0, caption_dropout_every_n_epochs=1, token_warmup_step=100)
    assert variants_of(record("a, b, c"), rules, 4) == ("a, b, c",)


def test_wildcards_and_lines_are_drawn():
    rules = CaptionRules(enable_wildcard=True)
    assert set(variants_of(record("a {red|blue} dog\nb"), rules, 40)) == {"a red dog", "a blue dog", "b"}


def test_rare_dropout_of_tags_stays_rare():
    rules = CaptionRules(caption_tag_dropout_rate=0.1, keep_tokens=1)
    kept = []
    for number in range(200):
        variants = variants_of(record("sks, a, b, c", name=f"{number}.png"), rules, 10)
        kept.append(choose_caption(variants, rules, draw=random.Random(number), epoch=1).count(","))
    assert 0.86 < sum(kept) / 600 < 0.94  # of three flexible tags each


def test_every_variant_is_chosen():
    draw = random.Random(0)
    chosen = Counter(choose_caption("abcd", CaptionRules(), draw=draw, epoch=1) for _ in range(400))
    assert sorted(chosen) == ["a", "b", "c", "d"]
    assert min(chosen.values()) > 60


def test_captions_are_dropped_at_their_rate_and_epochs():
    rate = CaptionRules(caption_dropout_rate=0.25)
    draw = random.Random(0)
    empty = sum(choose_caption(["a"], rate, draw=draw, epoch=1) == "" for _ in range(2000))
    assert 420 < empty < 580
    every = CaptionRules(caption_dropout_every_n_epochs=3)
    chosen = [choose_caption(["a"], every, draw=random.Random(0), epoch=epoch) for epoch in range(1, 7)]
    assert chosen == ["a", "a", "", "a", "a", ""]


def test_cached_captions_are_dropped_where_live_ones_are():
    rules = CaptionRules(caption_dropout_rate=0.4)
    for seed in range(50):
        live = apply_caption_rules("a", rules, draw=random.Random(seed), epoch=1, step=0, max_steps=1)
        assert choose_caption(["a"], rules, draw=random.Random(seed), epoch=1) == live
