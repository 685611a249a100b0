"""Looking before training: the plan in words (`--dry_run`) and the first batches (`--debug_dataset`). No weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.data.plan.captions import cache_conflicts
from library.data.plan.variants import caption_variants
from library.data.report.cache_size import ENTRY_OVERHEAD, free_spaces, latent_size
from library.data.report.report import CacheReport, DataReport, make_report
from library.data.report.report_text import describe
from library.errors import UserError
from library.log import get_logger

if TYPE_CHECKING:
    from library.families.base import ModelFamily
    from library.training.planning import DataPlan
    from library.training.run import Run

NUM_EXAMPLES = 3  # texts of a caption that changes from use to use
LATENTS, TEXTS = "latents", "text encoder outputs"

logger = get_logger(__name__)


@dataclass(frozen=True)
class CaptionLook:
    """The captions of a plan as the encoders count them.

    Attributes:
        texts: For each record what its caption becomes: one text, or examples of several.
        counts: {encoder: (tokens of all texts in a row, how many it reads)}, of encoders with a tokenizer.
        tokenizers: {encoder: its tokenizers, for the family}.
        note: What could not be counted, or None.
    """

    texts: tuple[tuple[str, ...], ...]
    counts: Mapping[str, tuple[Sequence[int], int]]
    tokenizers: Mapping[str, Any]
    note: str | None

    def lengths(self) -> dict[str, dict[str, int]]:
        """{text: {encoder: its tokens}}"""
        flat = [text for own in self.texts for text in own]
        found: dict[str, dict[str, int]] = {text: {} for text in flat}
        for encoder, (numbers, _) in self.counts.items():
            for text, number in zip(flat, numbers, strict=True):
                found[text][encoder] = number
        return found


def show_plan(run: Run, *, trained: Sequence[str] = ()) -> None:
    """Print what would be trained: the answer to `--dry_run`, after `plan_run` and `inspect_files`.

    Args:
        run: The run.
        trained: Names of the text encoders that train; their outputs are not cached.
    """
    if _is_first_process():
        look = look_at_captions(run.family, run.files, run.plan, number=NUM_EXAMPLES)
        write_lines(describe(report_of(run, look, trained=trained)))


def show_batches(run: Run) -> None:
    """Print the first batches as they would be trained: the answer to `--debug_dataset`."""
    if not _is_first_process():
        return
    from library.training.batch_words import BatchWords, describe_batches

    cache, seed = run.options.cache, run.options.training.seed
    words = BatchWords(run.plan, seed or 0, has_cached_latents=cache.caches_latents, has_cached_texts=cache.caches_text)
    if seed is None:
        write_lines(["without --seed every run draws another order; this is that of seed 0", ""])
    write_lines(describe_batches(words, run.plan))


def write_lines(lines: Iterable[str]) -> None:
    """To stdout, whatever the log does; signs that the console does not have are written as escapes."""
    from tqdm import tqdm

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for line in lines:
            tqdm.write(line)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for instance `head`, has seen enough; Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_of(run: Run, look: CaptionLook, *, trained: Sequence[str] = ()) -> DataReport:
    """The report on a run's data.

    Args:
        run: Planned; its files may be None.
        look: At its captions.
        trained: Names of the text encoders that train.
    """
    plan = run.plan
    caches = _caches(run, look, trained)
    folders = _cache_folders(run) if any(cache.on_disk for cache in caches) else []
    return make_report(
        source=plan.source,
        specs=plan.specs,
        records=plan.records,
        crops=plan.crops,
        num_training=plan.num_training,
        findings=plan.findings,
        steps=plan.steps if plan.num_training else None,
        texts=look.texts,
        counts=look.counts,
        length_note=look.note,
        caches=caches,
        cache_folders=free_spaces(folders),
    )


def look_at_captions(family: ModelFamily, files: Any, plan: DataPlan, *, number: int) -> CaptionLook:
    """The texts of a plan and their lengths, as far as there are tokenizers.

    Args:
        family: The model family.
        files: Its files, or None where no model is given.
        plan: The data.
        number: Examples of a caption that changes; with cached variants these are taken instead.
    """
    texts = tuple(_texts(plan, number))
    flat = [text for own in texts for text in own]
    tokenizers, note = tokenizers_at_hand(family, files)
    counts: dict[str, tuple[Sequence[int], int]] = {}
    for own in {id(each): each for each in tokenizers.values()}.values():
        counts |= family.caption_lengths(own, flat)
    return CaptionLook(texts, counts, tokenizers, note)


def tokenizers_at_hand(family: ModelFamily, files: Any) -> tuple[dict[str, Any], str | None]:
    """{encoder: tokenizers that have its own} of those that can be found, and a sentence about the others."""
    names = [name for name in family.encoder_names if files is None or family.has_encoder(files, name)]
    try:
        return dict.fromkeys(names, family.load_tokenizers(files, names)), None
    except UserError:
        found, missing = {}, []
    for name in names:
        try:
            found[name] = family.load_tokenizers(files, [name])
        except UserError:
            missing.append(name)
    return found, f"no tokenizer of {', '.join(missing)} is at hand, so nothing is counted for it; give --tokenizer_dir"


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0") or 0) == 0


def _texts(plan: DataPlan, number: int) -> Iterator[tuple[str, ...]]:
    if plan.settings.num_variants is not None:
        yield from (tuple(dict.fromkeys(own)) for own in plan.caption_variants())
        return
    for index, record in enumerate(plan.records):
        rules = plan.subset(record).captions
        changes = index < plan.num_training and bool(cache_conflicts(rules))
        yield tuple(dict.fromkeys(caption_variants(record, rules, number if changes else None)))


def _caches(run: Run, look: CaptionLook, trained: Sequence[str]) -> list[CacheReport]:
    options, family, plan = run.options.cache, run.family, run.plan
    number_bytes = 4 if run.options.precision.mixed_precision == "no" else 2
    caches = []
    if options.caches_latents:
        entries, num_bytes = latent_size(
            plan.records,
            plan.crops,
            plan.specs,
            channels=family.latent_channels,
            cells=family.pixels_per_latent,
            element_bytes=4 if run.options.precision.no_half_vae else number_bytes,
        )
        caches.append(CacheReport(LATENTS, entries, num_bytes, options.cache_latents_to_disk))
    if options.caches_text and run.files is not None:
        names = [name for name in family.encoder_names if name not in trained]
        lengths, texts = look.lengths(), _cached_texts(plan)
        numbers = [lengths.get(text, {}) for text in texts]
        num_bytes = family.text_state_bytes(run.files, names, numbers, element_bytes=number_bytes)
        num_bytes += ENTRY_OVERHEAD * len(texts)
        caches.append(CacheReport(TEXTS, len(texts), num_bytes, options.cache_text_encoder_outputs_to_disk))
    return caches


def _cached_texts(plan: DataPlan) -> list[str]:
    """The text of every entry of a text cache: each once for a folder, and the empty one where captions are dropped."""
    texts: dict[tuple[Path, str], None] = {}
    for record, own in zip(plan.records, plan.caption_variants(), strict=True):
        rules = plan.subset(record).captions
        is_dropped = rules.caption_dropout_rate > 0 or rules.caption_dropout_every_n_epochs > 0
        for text in (*own, *([""] if is_dropped else [])):
            texts[record.path.parent, text] = None
    return [text for _, text in texts]


def _cache_folders(run: Run) -> list[Path]:
    folder = run.options.cache.cache_dir
    return [folder] if folder is not None else list(dict.fromkeys(record.path.parent for record in run.plan.records))
