"""From options to rules, and what is told of those that a model cannot follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from library.data.problems import first_names
from library.log import get_logger
from library.options.spec import line_without_effect
from library.preparing.options.tagging import TaggingOptions
from library.preparing.tagging.choosing import Place, TagChooser, TagRules, split_tags
from library.preparing.tagging.labels import Label
from library.preparing.tagging.replacing import read_replacements

_CATEGORY_OF = {
    "use_rating_tags": "rating",
    "use_rating_tags_as_last_tag": "rating",
    "use_quality_tags": "quality",
    "use_quality_tags_as_last_tag": "quality",
    "character_tags_first": "character",
    "character_tag_expand": "character",
    **{f"{name}_threshold": name for name in ("general", "character", "meta", "model", "copyright", "artist")},
}

logger = get_logger(__name__)


def rules_of(options: TaggingOptions) -> TagRules:
    """What the options say about tags."""
    choice = options.choice
    separator = choice.caption_separator
    return TagRules(
        thresholds=options.thresholds.by_category(),
        rating=_place(choice.use_rating_tags, choice.use_rating_tags_as_last_tag),
        quality=_place(choice.use_quality_tags, choice.use_quality_tags_as_last_tag),
        are_characters_first=choice.character_tags_first,
        are_characters_expanded=choice.character_tag_expand,
        are_underscores_removed=choice.remove_underscore,
        replacements=read_replacements(choice.tag_replacement) if choice.tag_replacement else {},
        undesired=tuple(split_tags(choice.undesired_tags, separator)),
        always_first=tuple(split_tags(choice.always_first_tags or "", separator)),
    )


def _place(is_first: bool, is_last: bool) -> Place:
    return "last" if is_last else "first" if is_first else "nowhere"


def warn_of_limits(options: TaggingOptions, table: Path, labels: Sequence[Label], chooser: TagChooser) -> None:
    """Tell what was asked for and is not in the table of the model.

    Args:
        options: What was asked for.
        table: The file, for messages.
        labels: What it says.
        chooser: Made from both.
    """
    there = {label.category for label in labels}
    reasons = {
        option: f"the model has no {category} tags"
        for option, category in _CATEGORY_OF.items()
        if category not in there
    }
    for line in (*line_without_effect(options, reasons), *_unknown_tags(options, chooser)):
        logger.warning("%s", line)
    separator = options.choice.caption_separator.strip()
    if not separator:
        return
    split = "tags that hold %r will be read as several (%s): choose another --caption_separator, or %s"
    if holding := chooser.holding(separator):
        logger.warning(f"%s: {split}", table, separator, first_names(holding), "replace them")
    if holding := chooser.replacing_with(separator):
        logger.warning(f"--tag_replacement: {split}", separator, first_names(holding), "other words")


def _unknown_tags(options: TaggingOptions, chooser: TagChooser) -> Iterator[str]:
    rules = rules_of(options)
    if unknown := chooser.unknown(rules.undesired):
        yield f"--undesired_tags: the model never gives {first_names(unknown)}"
    if unknown := chooser.never_first():
        yield f"--always_first_tags: no picture is ever given {first_names(unknown)}"
    if unknown := chooser.never_replaced():
        yield f"--tag_replacement: the model never gives {first_names(unknown)}"
