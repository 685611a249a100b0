"""Caption variants: texts of a picture that can be cached and still change from epoch to epoch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from library.data.config.specs import SubsetSpec
from library.data.findings import Findings
from library.data.plan.captions import (
    CaptionRules,
    apply_caption_rules,
    cache_conflicts,
    fixed_caption,
    is_dropped,
)
from library.records import ImageRecord
from library.rng import python_stream


def caption_variants(record: ImageRecord, subset: SubsetSpec, number: int | None) -> tuple[str, ...]:
    """Texts of a picture for a text cache, the same for every --seed and wherever its folder lies.

    Texts that come out several times stay in as often, so that a draw among all of them follows the rules' chances
    (a rare tag dropout stays rare). Where all are equal there is one.

    Args:
        record: The picture.
        subset: Has its caption rules. Dropout of the whole caption is left to `choose_caption`; there is no warm-up.
        number: How many are drawn; None for the one caption after the rules that are not random.
    """
    rules = subset.captions
    if number is None:
        return (fixed_caption(record.caption, rules),)
    name = subset.name_of(record.path)
    lasting = replace(rules, caption_dropout_rate=0.0, caption_dropout_every_n_epochs=0, token_warmup_step=0.0)
    texts = tuple(
        apply_caption_rules(
            record.caption,
            lasting,
            draw=python_stream(0, "variant", name, index),
            epoch=1,
            step=0,
            max_steps=0,
        )
        for index in range(number)
    )
    return texts if len(set(texts)) > 1 else texts[:1]


def variant_findings(rules: Iterable[CaptionRules], number: int | None) -> Findings:
    """A note where variants are asked for and no rule makes any.

    Args:
        rules: Of all subsets.
        number: As for `caption_variants`.
    """
    if number is None or any(set(cache_conflicts(own)) - {"token_warmup_step"} for own in rules):
        return Findings()
    note = (
        "--text_encoder_cache_variants has no effect: no subset has shuffle_caption, caption_tag_dropout_rate or "
        "enable_wildcard, so each caption has one version"
    )
    return Findings(notes=(note,))


def choose_caption(variants: Sequence[str], rules: CaptionRules, *, draw: random.Random, epoch: int) -> str:
    """The text of a sample in an epoch: one of `variants`, or "" where its caption is dropped.

    Args:
        variants: At least one.
        rules: Of the picture's subset.
        draw: Generator of this sample in this epoch.
        epoch: Counted from 1.
    """
    return "" if is_dropped(rules, draw, epoch) else draw.choice(variants)
