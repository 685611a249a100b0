"""Caption variants: texts of a picture that can be cached and still change from epoch to epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from library.data.plan.captions import CaptionRules, apply_caption_rules, fixed_caption, is_dropped
from library.records import ImageRecord
from library.rng import python_stream


def caption_variants(record: ImageRecord, rules: CaptionRules, number: int | None) -> tuple[str, ...]:
    """Texts of a picture for a text cache, the same for every --seed.

    Texts that come out several times stay in as often, so that a draw among all of them follows the rules' chances
    (a rare tag dropout stays rare). Where all are equal there is one.

    Args:
        record: The picture.
        rules: Of its subset. Dropout of the whole caption is left to `choose_caption`; there is no warm-up.
        number: How many are drawn; None for the one caption after the rules that are not random.
    """
    if number is None:
        return (fixed_caption(record.caption, rules),)
    lasting = replace(rules, caption_dropout_rate=0.0, caption_dropout_every_n_epochs=0, token_warmup_step=0.0)
    texts = tuple(
        apply_caption_rules(
            record.caption,
            lasting,
            draw=python_stream(0, "variant", record.path.name, index),
            epoch=1,
            step=0,
            max_steps=0,
        )
        for index in range(number)
    )
    return texts if len(set(texts)) > 1 else texts[:1]


def choose_caption(variants: Sequence[str], rules: CaptionRules, *, draw: random.Random, epoch: int) -> str:
    """The text of a sample in an epoch: one of `variants`, or "" where its caption is dropped.

    Args:
        variants: At least one.
        rules: Of the picture's subset.
        draw: Generator of this sample in this epoch.
        epoch: Counted from 1.
    """
    return "" if is_dropped(rules, draw, epoch) else draw.choice(variants)
