"""Looking before training: the plan in words (`--dry_run`) and the first batches (`--debug_dataset`). No weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.data.cache import latent_entries, stored_precision, text_entries
from library.data.plan.captions import cache_conflicts
from library.data.plan.variants import caption_variants
from library.data.problems import counted, first_names
from library.data.report.cache_size import ENTRY_OVERHEAD, free_spaces, latent_size
from library.data.report.report import CacheReport, DataReport, make_report
from library.data.report.report_text import describe
from library.errors import UserError
from library.log import get_logger

if TYPE_CHECKING:
    from library.families.base import ModelFamily
    from library.training.planning import DataPlan
    from library.training.run import Run
    from library.training.trainer import Trainer

NUM_EXAMPLES = 3  # texts of a caption that changes from use to use
LATENTS, TEXTS = "latents", "text encoder outputs"

logger = get_logger(__name__)


@dataclass(frozen=True)
class CaptionLook:
    """The captions of a plan as the encoders count them.

    Attributes:
        texts: For each record what its caption becomes: one text, or examples of several.
        lengths: {text: {encoder: its tokens}}, of these and the empty text, for encoders with a tokenizer.
        limits: {encoder: how many tokens it reads}, of the same encoders.
        tokenizers: {encoder: its tokenizers, for the family}.
        note: What could not be counted, or None.
    """

    texts: tuple[tuple[str, ...], ...]
    lengths: Mapping[str, Mapping[str, int]]
    limits: Mapping[str, int]
    tokenizers: Mapping[str, Any]
    note: str | None

    def counts(self) -> dict[str, tuple[list[int], int]]:
        """{encoder: (tokens of all texts in a row, how many it reads)}"""
        flat = [text for own in self.texts for text in own]
        return {name: ([self.lengths[text][name] for text in flat], limit) for name, limit in self.limits.items()}


def show_plan(run: Run, *, trained: Sequence[str] = ()) -> None:
    """Print what would be trained: the answer to `--dry_run`, after `plan_run` and `inspect_files`.

    Args:
        run: The run.
        trained: Names of the text encoders that train; their outputs are not cached.
    """
    if _is_first_process():
        from library.data.files.soundness import num_never_decoded

        look = look_at_captions(run.family, run.files, run.plan, number=NUM_EXAMPLES)
        report = report_of(run, look, trained=trained)
        write_lines(describe(replace(report, num_never_decoded=num_never_decoded(run.plan.records, run.plan.index))))


def show_training(trainer: Trainer) -> None:
    """Print what of the model trains, and how; after `show_plan`."""
    if not _is_first_process():
        return
    chosen, seed = trainer.options.optimizer, trainer.options.training.seed
    schedule = chosen.lr_scheduler_type or chosen.lr_scheduler
    lines = [
        *trainer.planned_trainables(),
        f"optimizer {chosen.optimizer_name}, schedule {schedule}, "
        + ("a seed drawn at the start" if seed is None else f"seed {seed}"),
    ]
    write_lines(["", "TRAINING", *(f"  {line}" for line in lines)])


def show_forecast(trainer: Trainer) -> None:
    """Print what a training will take of memory and disk, and how it could take less; after `show_plan`."""
    if not _is_first_process():
        return
    from library.training.forecast.showing import forecast_lines

    write_lines(chain([""], forecast_lines(trainer)))  # line by line: if nothing fits, what it takes is told before


def show_batches(run: Run) -> None:
    """Print the first batches as they would be trained: the answer to `--debug_dataset`."""
    if not _is_first_process():
        return
    from library.training.looking.batch_words import BatchWords, describe_batches

    cache, seed = run.options.cache, run.options.training.seed
    words = BatchWords(
        run.plan,
        seed or 0,
        has_cached_latents=cache.caches_latents,
        has_cached_texts=cache.caches_text,
        replacements=run.caption_replacements(),
    )
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
    notes = [note for note in (look.note, _open_brackets(run.family, look, plan)) if note]
    folders = _cache_folders(run) if any(cache.on_disk for cache in caches) else []
    return make_report(
        source=plan.source,
        specs=plan.specs,
        records=plan.records,
        crops=plan.crops,
        num_training=plan.num_training,
        findings=plan.findings,
        steps=plan.steps if plan.num_training else None,
        files=plan.scan.files,
        texts=look.texts,
        counts=look.counts(),
        length_note="; ".join(notes) or None,
        caches=caches,
        cache_folders=free_spaces(folders),
    )


def bytes_in_memory(run: Run, *, trained: Sequence[str] = ()) -> int:
    """Most bytes of the caches that are kept in memory only: captions count in full length.

    Args:
        run: Planned and inspected.
        trained: Names of the text encoders that train.
    """
    uncounted = CaptionLook((), {}, {}, {}, None)
    return sum(cache.num_bytes for cache in _caches(run, uncounted, trained) if not cache.on_disk)


def look_at_captions(family: ModelFamily, files: Any, plan: DataPlan, *, number: int) -> CaptionLook:
    """The texts of a plan and their lengths, as far as there are tokenizers.

    Args:
        family: The model family.
        files: Its files, or None where no model is given.
        plan: The data.
        number: Examples of a caption that changes; with cached variants these are taken instead.
    """
    texts = tuple(_texts(plan, number))
    distinct = list(dict.fromkeys(("", *(text for own in texts for text in own))))  # "": a dropped caption
    tokenizers, note = tokenizers_at_hand(family, files)
    lengths: dict[str, dict[str, int]] = {text: {} for text in distinct}
    limits = {}
    for own in {id(each): each for each in tokenizers.values()}.values():
        for encoder, (numbers, limits[encoder]) in family.caption_lengths(own, distinct).items():
            for text, number in zip(distinct, numbers, strict=True):
                lengths[text][encoder] = number
    return CaptionLook(texts, lengths, limits, tokenizers, note)


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
    return found, _not_counted(missing)


def _not_counted(names: Sequence[str]) -> str:
    return (
        f"no tokenizer of {', '.join(names)} is at hand, so nothing is counted for it, and a training that has to "
        "encode captions ends at its start; give --tokenizer_dir"
    )


def _open_brackets(family: ModelFamily, look: CaptionLook, plan: DataPlan) -> str | None:
    """A sentence about captions that weigh more than they seem to."""
    from library.models.weighted_prompts import has_open_bracket

    if not family.is_weighted:
        return None
    own = [record for record, texts in zip(plan.records, look.texts, strict=True) if any(map(has_open_bracket, texts))]
    if not own:
        return None
    have, names = "has" if len(own) == 1 else "have", first_names([record.path.name for record in own])
    return f"{counted(len(own), 'caption')} {have} a bracket that is never closed and weighs all behind it: {names}"


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0") or 0) == 0


def _texts(plan: DataPlan, number: int) -> Iterator[tuple[str, ...]]:
    if plan.settings.num_variants is not None:
        yield from (tuple(dict.fromkeys(own)) for own in plan.caption_variants())
        return
    for index, record in enumerate(plan.records):
        subset = plan.subset(record)
        changes = index < plan.num_training and bool(cache_conflicts(subset.captions))
        yield tuple(dict.fromkeys(caption_variants(record, subset, number if changes else None)))


def _caches(run: Run, look: CaptionLook, trained: Sequence[str]) -> list[CacheReport]:
    options = run.options.cache
    caches = []
    if options.caches_latents:
        caches.append(_latent_cache(run))
    if options.caches_text and run.files is not None:
        present = [name for name in run.family.encoder_names if run.family.has_encoder(run.files, name)]
        if names := [name for name in present if name not in trained]:
            caches.append(_text_cache(run, look, names))
    return caches


def _latent_cache(run: Run) -> CacheReport:
    options, precision, family, plan = run.options.cache, run.options.precision, run.family, run.plan
    to_disk = options.cache_latents_to_disk
    entries, num_bytes = latent_size(
        latent_entries(
            plan.records,
            plan.crops,
            plan.specs,
            family=family.name,
            identity="",
            to_disk=to_disk,
            cache_dir=options.cache_dir,
        ),
        channels=family.latent_channels,
        cells=family.pixels_per_latent,
        element_bytes=_element_bytes("no" if precision.no_half_vae else precision.mixed_precision),
    )
    return CacheReport(LATENTS, entries, num_bytes, to_disk)


def _text_cache(run: Run, look: CaptionLook, names: Sequence[str]) -> CacheReport:
    options, family = run.options.cache, run.family
    to_disk = options.cache_text_encoder_outputs_to_disk
    entries, ids = text_entries(
        run.plan.records,
        run.plan.possible_captions(),
        family=family.name,
        identity="",
        to_disk=to_disk,
        cache_dir=options.cache_dir,
    )
    texts = {entry_id: text for own in ids for text, entry_id in own.items()}
    num_bytes = family.text_state_bytes(
        run.files,
        names,
        [look.lengths.get(text, {}) for text in texts.values()],
        element_bytes=_element_bytes(run.options.precision.mixed_precision),
    )
    return CacheReport(TEXTS, len(entries), num_bytes + ENTRY_OVERHEAD * len(entries), to_disk)


def _element_bytes(precision: str) -> int:
    """Of one number in a cache, where encoders run on this machine with this `--mixed_precision`."""
    import torch

    from library.device import choose_device, encoder_dtype, precision_dtype

    dtype = encoder_dtype(precision_dtype(precision), choose_device())
    return stored_precision(torch.empty(0, dtype=dtype)).itemsize


def _cache_folders(run: Run) -> list[Path]:
    folder = run.options.cache.cache_dir
    return [folder] if folder is not None else list(dict.fromkeys(record.path.parent for record in run.plan.records))
