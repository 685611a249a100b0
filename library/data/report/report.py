"""What a run will train on, in numbers: for `--dry_run` and the preview page.

Pure: everything comes in as an argument, and nothing here reads pictures. `report_text.py` puts it into words.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.findings import Fault, Findings
from library.data.plan.batches import StepCount
from library.records import CropPlan, ImageRecord, Size

MUCH_ENLARGED = 1.5  # times the width or height
MUCH_CUT = 0.1  # share of the picture's area
NUM_WORST = 5

# what differs between problems of one kind: numbers, remarks in brackets, quotations, paths and file names
_VARYING = re.compile(r"\d+([.,x]\d+)*|\([^)]*\)|'[^']*'|\"[^\"]*\"|\S*[/\\]\S*|\b\w\S*\.\w{2,8}\b")

Texts = Sequence[Sequence[str]]  # for each record what its caption can become
TokenCounts = Mapping[str, tuple[Sequence[int], int]]  # {encoder: (tokens of each text, how many it reads)}
SubsetFiles = Mapping[tuple[int, int], Set[Path]]  # {(dataset, subset): its pictures and others, used or not}


@dataclass(frozen=True, kw_only=True)
class SubsetReport:
    """One subset.

    Attributes:
        place: "1.2" is the second subset of the first dataset.
        source: Its folder or metadata file.
        pictures: That are used, validation included.
        validation: Of these, kept for validation.
        samples: Training pictures times their repeats.
        repeats: Smallest and largest.
        captions: {where they come from: number}, the most first.
        masks: Pictures with a mask.
        skipped: Files that it is about and that are not used.
    """

    place: str
    source: str
    pictures: int
    validation: int
    samples: int
    repeats: tuple[int, int]
    captions: Mapping[str, int]
    masks: int
    skipped: int
    is_reg: bool


@dataclass(frozen=True)
class Skipped:
    """Pictures and files that are not used for one reason.

    Attributes:
        reason: What their problems say alike; where they differ it has an ellipsis.
        is_fault: Something is broken, as opposed to left out by a filter or type.
    """

    reason: str
    entries: tuple[Fault, ...]
    is_fault: bool

    @property
    def lines(self) -> tuple[str, ...]:
        """Each file, with its own problem where that says more than the reason."""
        return tuple(str(each.path) if each.problem == self.reason else str(each) for each in self.entries)


@dataclass(frozen=True)
class BucketReport:
    """The training pictures of one size in one dataset, counted from 1."""

    dataset: int
    size: Size
    pictures: int
    samples: int
    batches: int


@dataclass(frozen=True)
class CropReport:
    """What cropping and resizing do to the pictures.

    Attributes:
        mean_loss: Share of the area that is cut away, 0-1.
        num_much_cut: Pictures that lose more than `MUCH_CUT`.
        worst: Those that lose most, with their share.
        num_enlarged: Pictures that are resized upward at all.
        num_much_enlarged: More than `MUCH_ENLARGED` times.
        most_enlarged: With their factor.
    """

    mean_loss: float
    num_much_cut: int
    worst: tuple[tuple[Path, float], ...]
    num_enlarged: int
    num_much_enlarged: int
    most_enlarged: tuple[tuple[Path, float], ...]


@dataclass(frozen=True)
class LengthReport:
    """Lengths of the captions for one encoder, in tokens with begin and end.

    Attributes:
        num_cut: Pictures with a caption that is longer than the limit.
        longest_of: The picture with the longest caption.
    """

    encoder: str
    limit: int
    median: float
    longest: int
    longest_of: Path
    num_cut: int


@dataclass(frozen=True)
class CacheReport:
    """Room that a cache takes when it is complete.

    Attributes:
        what: "latents" or "text encoder outputs".
        on_disk: False: in memory.
    """

    what: str
    entries: int
    num_bytes: int
    on_disk: bool


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """All of it.

    Attributes:
        source: The dataset file or folders, as the user named them.
        steps: None where nothing can be trained.
        lengths: Empty where no tokenizer is at hand; `length_note` says why.
        num_captions_cut: Pictures with a caption that is too long for any encoder.
        cache_folders: {a folder that gets cache files: free bytes there}.
        num_never_decoded: Pictures that may be damaged behind their headers; 0 where that is not asked.
    """

    source: str
    steps: StepCount | None
    subsets: tuple[SubsetReport, ...]
    skipped: tuple[Skipped, ...]
    buckets: tuple[BucketReport, ...]
    crops: CropReport | None
    findings: Findings
    num_pictures: int
    num_validation: int
    lengths: tuple[LengthReport, ...] = ()
    num_captions_cut: int = 0
    length_note: str | None = None
    caches: tuple[CacheReport, ...] = ()
    cache_folders: Mapping[Path, int] = field(default_factory=dict)
    num_never_decoded: int = 0


def make_report(
    *,
    source: str,
    specs: Sequence[DatasetSpec],
    records: Sequence[ImageRecord],
    crops: Sequence[CropPlan],
    num_training: int,
    findings: Findings,
    steps: StepCount | None,
    files: SubsetFiles | None = None,
    texts: Texts = (),
    counts: TokenCounts | None = None,
    length_note: str | None = None,
    caches: Sequence[CacheReport] = (),
    cache_folders: Mapping[Path, int] | None = None,
) -> DataReport:
    """Count.

    Args:
        source: The dataset file or folders.
        specs: The datasets.
        records: All pictures, training first.
        crops: One for each record.
        num_training: How many records train; the rest is for validation.
        findings: Of scanning and planning.
        steps: The step arithmetic, if there is anything to train.
        files: What each subset is about; without it none counts files that are not used.
        texts: For each record what its caption can become.
        counts: Tokens of these texts, one after another, by encoder.
        length_note: Why there are no counts.
        caches: Sizes of the caches.
        cache_folders: Where cache files go, with the free bytes.
    """
    lengths, num_captions_cut = _lengths(records, texts, counts or {})
    return DataReport(
        source=source,
        steps=steps,
        subsets=_subsets(specs, records, num_training, _unused(records, findings, files or {})),
        skipped=group_by_reason(findings),
        buckets=_buckets(records[:num_training], crops, specs),
        crops=_crops(records, crops) if records else None,
        findings=findings,
        num_pictures=len(records),
        num_validation=len(records) - num_training,
        lengths=lengths,
        num_captions_cut=num_captions_cut,
        length_note=length_note,
        caches=tuple(caches),
        cache_folders=dict(cache_folders or {}),
    )


def crop_loss(crop: CropPlan) -> float:
    """Share of the resized picture's area that is cut away, 0-1."""
    return 1 - crop.bucket.width * crop.bucket.height / (crop.resized.width * crop.resized.height)


def enlargement(record: ImageRecord, crop: CropPlan) -> float:
    """How many times larger the picture becomes; below 1 it shrinks."""
    return max(crop.resized.width / record.size.width, crop.resized.height / record.size.height)


def group_by_reason(findings: Findings) -> tuple[Skipped, ...]:
    """What is not used, faults first, by the reason without its numbers and names; the most frequent one first."""
    groups: dict[tuple[bool, str], list[Fault]] = {}
    for is_fault, entries in ((True, findings.faults), (False, findings.left_out)):
        for entry in entries:
            groups.setdefault((is_fault, _VARYING.sub("...", entry.problem)), []).append(entry)
    skipped = []
    for (is_fault, pattern), found in groups.items():
        is_same = len({entry.problem for entry in found}) == 1
        skipped.append(Skipped(found[0].problem if is_same else pattern, tuple(found), is_fault))
    return tuple(sorted(skipped, key=lambda group: (not group.is_fault, -len(group.entries))))


def caption_source(record: ImageRecord, subset: SubsetSpec) -> str:
    """Where a caption comes from: "file", "metadata", "class_tokens" or "empty"."""
    if not record.caption:
        return "empty"
    if subset.metadata_file is not None:
        return "metadata"
    return "class_tokens" if record.caption == subset.class_tokens else "file"


def _subsets(
    specs: Sequence[DatasetSpec],
    records: Sequence[ImageRecord],
    num_training: int,
    num_unused: Mapping[tuple[int, int], int],
) -> tuple[SubsetReport, ...]:
    members: dict[tuple[int, int], list[int]] = {}
    for index, record in enumerate(records):
        members.setdefault((record.dataset, record.subset), []).append(index)
    reports = []
    for dataset, spec in enumerate(specs):
        for number, subset in enumerate(spec.subsets):
            indices = members.get((dataset, number), [])
            training = [records[index] for index in indices if index < num_training]
            repeats = [record.repeats for record in training] or [subset.num_repeats]
            reports.append(
                SubsetReport(
                    place=f"{dataset + 1}.{number + 1}",
                    source=str(subset.metadata_file or subset.image_dir),
                    pictures=len(indices),
                    validation=len(indices) - len(training),
                    samples=sum(record.repeats for record in training),
                    repeats=(min(repeats), max(repeats)),
                    captions=dict(Counter(caption_source(records[i], subset) for i in indices).most_common()),
                    masks=len(indices) if subset.alpha_mask else sum(records[i].mask is not None for i in indices),
                    skipped=num_unused.get((dataset, number), 0),
                    is_reg=subset.is_reg,
                )
            )
    return tuple(reports)


def _unused(records: Sequence[ImageRecord], findings: Findings, files: SubsetFiles) -> dict[tuple[int, int], int]:
    """How many files of each subset are not used because something was found about them.

    A picture can be used by one dataset and be too small for another.
    """
    used = {(record.dataset, record.subset, record.path) for record in records}
    unused = {entry.picture for entry in (*findings.faults, *findings.left_out)}
    return {place: sum((*place, path) not in used for path in own & unused) for place, own in files.items()}


def _buckets(
    training: Sequence[ImageRecord], crops: Sequence[CropPlan], specs: Sequence[DatasetSpec]
) -> tuple[BucketReport, ...]:
    pictures: Counter[tuple[int, Size]] = Counter()
    samples: Counter[tuple[int, Size]] = Counter()
    for record, crop in zip(training, crops, strict=False):  # crops of validation pictures follow
        pictures[record.dataset, crop.bucket] += 1
        samples[record.dataset, crop.bucket] += record.repeats
    return tuple(
        BucketReport(
            dataset + 1, size, number, samples[dataset, size], -(-samples[dataset, size] // _batch(specs, dataset))
        )
        for (dataset, size), number in sorted(pictures.items())
    )


def _batch(specs: Sequence[DatasetSpec], dataset: int) -> int:
    return specs[dataset].batch_size


def _crops(records: Sequence[ImageRecord], crops: Sequence[CropPlan]) -> CropReport:
    losses = [(record.path, crop_loss(crop)) for record, crop in zip(records, crops, strict=True)]
    factors = [(record.path, enlargement(record, crop)) for record, crop in zip(records, crops, strict=True)]
    return CropReport(
        mean_loss=statistics.fmean(loss for _, loss in losses),
        num_much_cut=len({path for path, loss in losses if loss > MUCH_CUT}),
        worst=_largest(losses, above=MUCH_CUT),
        num_enlarged=len({path for path, factor in factors if factor > 1}),
        num_much_enlarged=len({path for path, factor in factors if factor > MUCH_ENLARGED}),
        most_enlarged=_largest(factors, above=MUCH_ENLARGED),
    )


def _largest(values: Sequence[tuple[Path, float]], *, above: float) -> tuple[tuple[Path, float], ...]:
    """The largest values, each picture once."""
    best: dict[Path, float] = {}
    for path, value in values:
        if value > above:
            best[path] = max(value, best.get(path, 0.0))
    return tuple(sorted(best.items(), key=lambda item: -item[1])[:NUM_WORST])


def _lengths(records: Sequence[ImageRecord], texts: Texts, counts: TokenCounts) -> tuple[tuple[LengthReport, ...], int]:
    """For each encoder, and the number of pictures with a caption that is too long for any."""
    owners = [record.path for record, own in zip(records, texts, strict=False) for _ in own]
    reports = []
    all_cut: set[Path] = set()
    for encoder, (numbers, limit) in counts.items():
        if not numbers:
            continue
        longest = max(range(len(numbers)), key=numbers.__getitem__)
        cut = {path for path, number in zip(owners, numbers, strict=True) if number > limit}
        all_cut |= cut
        median = statistics.median(numbers)
        reports.append(LengthReport(encoder, limit, median, numbers[longest], owners[longest], len(cut)))
    return tuple(reports), len(all_cut)
