"""What the preview page shows of each picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.findings import Fault, Findings
from library.data.report.page.thumbnails import Thumbnail, make_plain_thumbnail, make_thumbnail
from library.data.report.report import MUCH_CUT, MUCH_ENLARGED, crop_loss, enlargement
from library.errors import DatasetError
from library.records import CropPlan, ImageRecord

PROBLEM, LEFT_OUT = "cannot be used", "left out"
CAPTION_CUT, NO_CAPTION = "caption cut off", "empty caption"
CUT, ENLARGED = f"loses over {MUCH_CUT:.0%}", f"enlarged over {MUCH_ENLARGED:g} x"
REGULARISATION, VALIDATION, MASKED = "regularisation", "validation", "masked"


@dataclass(frozen=True)
class ReadText:
    """A text as the encoders read it.

    Attributes:
        tokens: {encoder: (its tokens with begin and end, how many are read)}.
        cuts: {encoder: index of the first character that is not read}, of those that do not read all.
    """

    text: str
    tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    cuts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PagePicture:
    """One picture of the page.

    Attributes:
        place: "1.2" for the second subset of the first dataset; empty where it belongs to none.
        bucket: "1024x1024", after "2: " in a second dataset; empty where it has none.
        flags: What is special about it.
        problem: Why it is not used.
        texts: The caption; several where it changes from use to use.
        rules: How the caption changes.
        loss: Share that is cut away, 0-1.
        scale: How many times larger it becomes.
    """

    path: Path
    place: str = ""
    bucket: str = ""
    flags: tuple[str, ...] = ()
    problem: str | None = None
    stored: str = ""
    repeats: int = 0
    thumbnail: Thumbnail | None = None
    texts: tuple[ReadText, ...] = ()
    rules: tuple[str, ...] = ()
    loss: float = 0.0
    scale: float = 0.0


def page_pictures(
    records: Sequence[ImageRecord],
    crops: Sequence[CropPlan],
    specs: Sequence[DatasetSpec],
    *,
    num_training: int,
    findings: Findings,
    texts: Sequence[Sequence[ReadText]],
    cells: int,
    progress: Callable[[Iterator[PagePicture], int], Iterator[PagePicture]] = lambda pictures, _: pictures,
) -> list[PagePicture]:
    """Every picture of the data, those that cannot be used first. Decodes them, in threads.

    Args:
        records: Pictures that are used, training first.
        crops: One for each record.
        specs: The datasets.
        num_training: How many records train.
        findings: Says what is not used.
        texts: For each record its caption, or examples of what becomes of it.
        cells: Pixels of a latent's side.
        progress: Wraps the pictures as they come, given their number; for a bar.
    """
    unused = [(entry, flag) for entries, flag in _unused(findings) for entry in entries if _is_picture(entry)]
    used = list(enumerate(zip(records, crops, texts, strict=True)))

    def make_used(item: tuple[int, tuple[ImageRecord, CropPlan, Sequence[ReadText]]]) -> PagePicture:
        index, (record, crop, own) = item
        return _used_picture(record, crop, specs, texts=tuple(own), is_training=index < num_training, cells=cells)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        made = (*threads.map(lambda entry: _unused_picture(*entry), unused),)
        return [*made, *progress(threads.map(make_used, used), len(used))]


def caption_rules(subset: SubsetSpec) -> tuple[str, ...]:
    """How a subset's captions change from use to use, each in a few words."""
    rules = subset.captions
    kept = f", {rules.keep_tokens_separator} separates" if rules.keep_tokens_separator else ""
    if rules.keep_tokens and not kept:
        kept = ", the first one stays" if rules.keep_tokens == 1 else f", the first {rules.keep_tokens} stay"
    found = {
        f"tags shuffled{kept}": rules.shuffle_caption,
        "wildcards": rules.enable_wildcard,
        f"tags dropped {rules.caption_tag_dropout_rate:.0%}": rules.caption_tag_dropout_rate > 0,
        f"empty {rules.caption_dropout_rate:.0%} of the time": rules.caption_dropout_rate > 0,
        f"empty every {rules.caption_dropout_every_n_epochs} epochs": rules.caption_dropout_every_n_epochs > 0,
        "tags warm up": rules.token_warmup_step > 0,
    }
    return tuple(words for words, is_active in found.items() if is_active)


def _unused(findings: Findings) -> tuple[tuple[Sequence[Fault], str], ...]:
    return (findings.faults, PROBLEM), (findings.left_out, LEFT_OUT)


def _is_picture(entry: Fault) -> bool:
    return entry.picture.suffix.lower() in IMAGE_SUFFIXES or entry.image is not None


def _unused_picture(entry: Fault, flag: str) -> PagePicture:
    where = "" if entry.path == entry.picture else f"{entry.path.name} "
    return PagePicture(
        path=entry.picture,
        flags=(flag,),
        problem=f"{where}{entry.problem}",
        thumbnail=make_plain_thumbnail(entry.picture),
    )


def _used_picture(
    record: ImageRecord,
    crop: CropPlan,
    specs: Sequence[DatasetSpec],
    *,
    texts: tuple[ReadText, ...],
    is_training: bool,
    cells: int,
) -> PagePicture:
    spec = specs[record.dataset]
    subset = spec.subsets[record.subset]
    loss, scale = crop_loss(crop), enlargement(record, crop)
    problem = None
    thumbnail = None
    try:
        thumbnail = make_thumbnail(record, crop, spec, cells=cells)
    except DatasetError as error:
        problem = str(error)
    flags = {
        PROBLEM: problem is not None,
        CAPTION_CUT: any(text.cuts for text in texts),
        NO_CAPTION: not any(text.text for text in texts),
        CUT: loss > MUCH_CUT,
        ENLARGED: scale > MUCH_ENLARGED,
        REGULARISATION: record.is_reg,
        VALIDATION: not is_training,
        MASKED: record.mask is not None or subset.alpha_mask,
    }
    return PagePicture(
        path=record.path,
        place=f"{record.dataset + 1}.{record.subset + 1}",
        bucket=bucket_name(record.dataset, str(crop.bucket), len(specs)),
        flags=tuple(flag for flag, is_set in flags.items() if is_set),
        problem=problem,
        stored=str(record.size),
        repeats=record.repeats,
        thumbnail=thumbnail,
        texts=texts,
        rules=caption_rules(subset),
        loss=loss,
        scale=scale,
    )


def bucket_name(dataset: int, size: str, num_datasets: int) -> str:
    """How a bucket is called: its size, and of several datasets (counted from 0) which."""
    return size if num_datasets == 1 else f"{dataset + 1}: {size}"
