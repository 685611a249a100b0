"""Diagnoses that follow from a training's plan: what it could not use, and what it does to pictures and captions."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from library.data.config.specs import DatasetSpec
from library.data.files.fixing import Remedy
from library.data.files.quarantine import CaptionsBeside
from library.data.findings import Fault, FaultKind, Findings
from library.data.report.diagnosis import Case, Diagnosis, Severity
from library.data.report.report import MUCH_CUT, MUCH_ENLARGED, crop_loss, enlargement
from library.records import CropPlan, ImageRecord

TINY = 2.0  # times the width or height: enlarged more, a picture is a blur
EXTREME = 0.35  # share of the area: with more cut away, a caption may tell of what is not there

_KINDS: dict[FaultKind, tuple[str, str, str]] = {  # code, summary, advice
    "broken": ("broken-picture", "pictures that cannot be decoded", "Get them again, or remove them"),
    "missing-caption": ("missing-caption", "pictures without caption", "Write captions, or set class_tokens"),
    "empty-caption": ("empty-caption", "captions without text", "Write a caption into each, or set empty_caption"),
    "encoding": ("encoding", "captions in another encoding than UTF-8", "Save them as UTF-8"),
    "shared-caption": ("shared-caption", "pictures that share a caption file", "Rename one of each two"),
    "mask": ("mask", "masks that cannot be used", "Give each picture one mask of its shape"),
    "too-large": ("too-large", "pictures that are too large", "Make them smaller"),
    "unusable": ("unusable-file", "files that cannot be used", "Do what is said of each"),
}
_TOLD_BETTER = r"pictures enlarged more than|pictures that lose more than|caption files read as"  # by other diagnoses


def findings_diagnoses(
    findings: Findings, *, is_strict: bool, caption_endings: Iterable[str], needed: Iterable[Path] = ()
) -> Iterator[Diagnosis]:
    """What scanning and planning noticed.

    Args:
        findings: Of both.
        is_strict: Pictures that cannot be used stop a training.
        caption_endings: Endings of caption files beside the usual ones; they go aside with their broken pictures.
        needed: Files that stay where they are, under whatever name: other subsets or a metadata file name them.
    """
    yield Diagnosis("error", "setup", "problems of the dataset as a whole", "", _told(findings.problems))
    groups: dict[FaultKind, list[Fault]] = {}
    for fault in findings.faults:
        groups.setdefault(fault.kind, []).append(fault)
    severity: Severity = "error" if is_strict else "warning"
    for kind, faults in groups.items():
        cases = _broken(faults, needed, caption_endings) if kind == "broken" else _cases(faults)
        yield Diagnosis(severity, *_KINDS[kind], cases)
    yield from _left_out(findings.left_out)
    yield Diagnosis(
        "warning", "plan-warning", "what a training would warn of", "", _told(_not_told_better(findings.notes))
    )
    yield Diagnosis("note", "plan-note", "what a training would remark", "", _told(_not_told_better(findings.remarks)))


def crop_diagnoses(
    records: Sequence[ImageRecord], crops: Sequence[CropPlan], specs: Sequence[DatasetSpec], *, num_training: int
) -> Iterator[Diagnosis]:
    """Pictures that are enlarged or cut a lot, and buckets that never fill a batch."""
    factors: dict[Path, tuple[float, str]] = {}
    losses: dict[Path, tuple[float, str]] = {}
    for record, crop in zip(records, crops, strict=True):
        where = f" in dataset {record.dataset + 1}" if len(specs) > 1 else ""
        factor, loss = enlargement(record, crop), crop_loss(crop)
        if factor > factors.get(record.path, (0.0, ""))[0]:  # of several datasets the worst counts
            factors[record.path] = (factor, f"{record.size}, enlarged {factor:.1f} times to {crop.bucket}{where}")
        if loss > losses.get(record.path, (0.0, ""))[0]:
            losses[record.path] = (loss, f"{record.size}, {loss:.0%} is cut away for {crop.bucket}{where}")
    larger, fewer = "Find larger ones, or train at a lower resolution", "Cut them by hand"
    if not all(spec.enable_bucket for spec in specs):
        fewer += ", or give --enable_bucket"
    tiny = f"tiny pictures, enlarged more than {TINY:g} times"
    yield Diagnosis("warning", "tiny-picture", tiny, larger, _between(factors, TINY))
    enlarged = f"pictures enlarged more than {MUCH_ENLARGED:g} times"
    yield Diagnosis("warning", "upscaled", enlarged, larger, _between(factors, MUCH_ENLARGED, TINY))
    extreme = f"pictures of which more than {EXTREME:.0%} is cut away"
    yield Diagnosis("warning", "extreme-shape", extreme, fewer, _between(losses, EXTREME))
    cut = f"pictures of which more than {MUCH_CUT:.0%} is cut away"
    yield Diagnosis("note", "cut", cut, "Look at what is left of them", _between(losses, MUCH_CUT, EXTREME))
    yield _small_buckets(records[:num_training], crops, specs)


def length_diagnoses(
    records: Sequence[ImageRecord],
    texts: Sequence[Sequence[str]],
    lengths: Mapping[str, Mapping[str, int]],
    limits: Mapping[str, int],
    note: str | None,
) -> Iterator[Diagnosis]:
    """Captions that are longer than an encoder reads.

    Args:
        records: The pictures.
        texts: For each record what its caption can become.
        lengths: {text: {encoder: tokens}}.
        limits: {encoder: how many it reads}.
        note: What could not be counted.
    """
    cases = []
    for record, own in zip(records, texts, strict=True):
        over = {
            encoder: number
            for encoder, limit in limits.items()
            if (number := max((lengths[text][encoder] for text in own), default=0)) > limit
        }
        if over:
            told = ", ".join(
                f"{encoder} reads {limits[encoder]} of {number} tokens" for encoder, number in over.items()
            )
            cases.append(Case((record.path,), told))
    advice = "Put what matters first, or shorten them; docs/look_before_you_train.md shows where they are cut"
    yield Diagnosis("warning", "caption-cut", "captions that encoders do not read to their end", advice, tuple(cases))
    yield Diagnosis("note", "not-counted", "lengths of captions", "", _told((note,) if note else ()))


def _told(lines: Iterable[str]) -> tuple[Case, ...]:
    return tuple(Case(detail=line) for line in lines)


def _not_told_better(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if not re.search(_TOLD_BETTER, line)]


def _broken(faults: Iterable[Fault], needed: Iterable[Path], caption_endings: Iterable[str]) -> tuple[Case, ...]:
    """Broken pictures, which may be set aside with their captions unless somebody names them."""
    places = {os.path.realpath(path) for path in needed}
    beside = CaptionsBeside(caption_endings)
    return tuple(
        Case((fault.path,), fault.problem, set_aside(fault.path, beside, places) if fault.path.is_file() else ())
        for fault in faults
    )


def set_aside(picture: Path, beside: CaptionsBeside, needed: Collection[str]) -> tuple[Remedy, ...]:
    """Moving a picture out of the way with what tells of it; nothing where one of the files is needed.

    Args:
        picture: The file.
        beside: Finds its captions and other files of its name.
        needed: Real paths of files that stay where they are.
    """
    files = (picture, *beside.of(picture), *beside.sidecars_of(picture))
    if any(os.path.realpath(path) in needed for path in files):
        return ()
    return tuple(Remedy("set aside", path) for path in files)


def _left_out(left_out: Sequence[Fault]) -> Iterator[Diagnosis]:
    masks, types = (_cases(fault for fault in left_out if fault.kind == kind) for kind in ("orphan-mask", "type"))
    others = _cases(fault for fault in left_out if fault.kind not in ("orphan-mask", "type"))
    yield Diagnosis("warning", "orphan-mask", "masks without picture", "Remove them", masks)
    yield Diagnosis("warning", "unread-type", "pictures and films that are not read", "Convert them", types)
    yield Diagnosis("note", "left-out", "pictures that filters leave out", "", others)


def _cases(faults: Iterable[Fault]) -> tuple[Case, ...]:
    return tuple(Case((fault.path,), fault.problem) for fault in faults)


def _between(values: Mapping[Path, tuple[float, str]], low: float, high: float = float("inf")) -> tuple[Case, ...]:
    """Cases of the values above `low`, up to `high`, the largest first."""
    found = [(value, path, detail) for path, (value, detail) in values.items() if low < value <= high]
    return tuple(Case((path,), detail) for _, path, detail in sorted(found, key=lambda item: -item[0]))


def _small_buckets(
    training: Sequence[ImageRecord], crops: Sequence[CropPlan], specs: Sequence[DatasetSpec]
) -> Diagnosis:
    samples: Counter[tuple[int, str]] = Counter()
    for record, crop in zip(training, crops, strict=False):  # crops of validation pictures follow
        samples[record.dataset, str(crop.bucket)] += record.repeats
    cases = tuple(
        Case(detail=f"{size} of dataset {dataset + 1}: {number} in an epoch, batches hold {specs[dataset].batch_size}")
        for (dataset, size), number in sorted(samples.items())
        if number < specs[dataset].batch_size
    )
    advice = "Add pictures of these shapes, or cut them to those of others"
    return Diagnosis("note", "small-bucket", "buckets that never fill a batch", advice, cases)
