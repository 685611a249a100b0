"""What becomes of a caption each time its picture is used.

Pure text functions. The pipeline has a fixed order: dropout, choice of a line, prefix and suffix, wildcards, warm-up,
shuffling and dropout of tags, secondary separator, replacements. Random choices come from a generator that is passed
in, so one key pins one result.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# Unicode noncharacters, which no text holds: they stand for escaped braces while wildcards are resolved.
_OPEN_BRACE, _CLOSE_BRACE = "\ufdd0", "\ufdd1"
_WILDCARD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, kw_only=True)
class CaptionRules:
    """How the captions of a subset are changed; the names are the keys of the dataset file.

    `token_warmup_step` below 1 is a fraction of all optimizer steps. Rates are 0..1.
    """

    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    secondary_separator: str | None = None
    enable_wildcard: bool = False
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    token_warmup_min: int = 1
    token_warmup_step: float = 0.0

    @property
    def edits_tags(self) -> bool:
        """Whether captions are taken apart into tags at all."""
        return self.shuffle_caption or self.token_warmup_step > 0 or self.caption_tag_dropout_rate > 0


def apply_caption_rules(
    caption: str,
    rules: CaptionRules,
    *,
    draw: random.Random,
    epoch: int,
    step: int,
    max_steps: int,
    replacements: Mapping[str, str | Sequence[str]] | None = None,
) -> str:
    """Make the text that the encoders read.

    Args:
        caption: As read from its file; may hold several lines where wildcards are on.
        rules: Of the picture's subset.
        draw: Generator of this sample in this epoch.
        epoch: Counted from 1.
        step: Optimizer steps done so far, for the warm-up.
        max_steps: Optimizer steps of the whole run.
        replacements: Texts to put in for others, in this order; the key "" replaces the whole caption. Of several
            texts one is drawn.
    """
    if is_dropped(rules, draw, epoch):
        return ""
    lines = caption.split("\n")
    line = draw.choice(lines) if rules.enable_wildcard else lines[0]
    caption = _join_prefix_and_suffix(line, rules)
    if rules.enable_wildcard:
        caption = _fill_wildcards(caption, draw)
    if rules.edits_tags:
        caption = _edit_tags(caption, rules, draw, step, max_steps)
    if rules.secondary_separator:
        caption = caption.replace(rules.secondary_separator, rules.caption_separator)
    return replace_texts(caption, replacements or {}, draw)


def fixed_caption(caption: str, rules: CaptionRules) -> str:
    """The caption with only those rules applied that give the same text every time, for cached encoder outputs.

    Equal to `apply_caption_rules` for every rule set that `cache_conflicts` finds nothing in, unless the whole caption
    is dropped.
    """
    fixed_rules = replace(
        rules,
        shuffle_caption=False,
        enable_wildcard=False,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
        token_warmup_step=0.0,
    )
    return apply_caption_rules(caption, fixed_rules, draw=random.Random(0), epoch=1, step=0, max_steps=0)


def cache_conflicts(rules: CaptionRules, has_variants: bool = False) -> tuple[str, ...]:
    """Names of the active rules that cannot act on cached encoder outputs.

    Dropout of whole captions always can: the outputs of the empty caption are cached too.

    Args:
        rules: Of a subset.
        has_variants: Several texts of each caption are cached (--text_encoder_cache_variants).
    """
    changing = {
        "shuffle_caption": rules.shuffle_caption,
        "caption_tag_dropout_rate": rules.caption_tag_dropout_rate > 0,
        "enable_wildcard": rules.enable_wildcard,
    }
    active = {} if has_variants else changing
    active["token_warmup_step"] = rules.token_warmup_step > 0
    return tuple(name for name, is_active in active.items() if is_active)


def is_dropped(rules: CaptionRules, draw: random.Random, epoch: int) -> bool:
    """Whether the whole caption of a sample is left out in an epoch (counted from 1)."""
    if rules.caption_dropout_rate > 0 and draw.random() < rules.caption_dropout_rate:
        return True
    return rules.caption_dropout_every_n_epochs > 0 and epoch % rules.caption_dropout_every_n_epochs == 0


def _join_prefix_and_suffix(caption: str, rules: CaptionRules) -> str:
    if rules.caption_prefix:
        caption = f"{rules.caption_prefix} {caption}"
    if rules.caption_suffix:
        caption = f"{caption} {rules.caption_suffix}"
    return caption


def _fill_wildcards(caption: str, draw: random.Random) -> str:
    """`{a|b}` becomes one of its options; `{{` and `}}` are literal braces."""
    text = caption.replace("{{", _OPEN_BRACE).replace("}}", _CLOSE_BRACE)
    text = _WILDCARD.sub(lambda match: draw.choice(match.group(1).split("|")), text)
    return text.replace(_OPEN_BRACE, "{").replace(_CLOSE_BRACE, "}")


def _edit_tags(caption: str, rules: CaptionRules, draw: random.Random, step: int, max_steps: int) -> str:
    head, flexible, tail = _split_tags(caption, rules)
    flexible = flexible[: _num_warm_tags(len(flexible), rules, step, max_steps)]
    if rules.shuffle_caption:
        draw.shuffle(flexible)
    if rules.caption_tag_dropout_rate > 0:
        flexible = [tag for tag in flexible if draw.random() >= rules.caption_tag_dropout_rate]
    return ", ".join([*head, *flexible, *tail])


def _split_tags(caption: str, rules: CaptionRules) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, tags that may change, tags that stay at the end."""
    mark = rules.keep_tokens_separator
    if mark and mark in caption:
        parts = [*caption.split(mark, 2), ""][:3]
        head, flexible, tail = ([tag for tag in _tags(part, rules) if tag] for part in parts)
        return head, flexible, tail
    tags = _tags(caption.strip(), rules)
    return tags[: rules.keep_tokens], tags[rules.keep_tokens :], []


def _tags(text: str, rules: CaptionRules) -> list[str]:
    return [tag.strip() for tag in text.split(rules.caption_separator)]


def _num_warm_tags(num_tags: int, rules: CaptionRules, step: int, max_steps: int) -> int:
    """How many flexible tags are used at this step: from `token_warmup_min` to all, in a straight line."""
    length = rules.token_warmup_step
    if length < 1:
        length = math.floor(length * max_steps)
    if step >= length:
        return num_tags
    num_warm = math.floor(step * (num_tags - rules.token_warmup_min) / length) + rules.token_warmup_min
    return max(0, min(num_warm, num_tags))


def replace_texts(caption: str, replacements: Mapping[str, str | Sequence[str]], draw: random.Random) -> str:
    """Put texts in for others, see `apply_caption_rules`."""
    for old, new in replacements.items():
        text = new if isinstance(new, str) else draw.choice(list(new))
        caption = caption.replace(old, text) if old else text
    return caption
