"""A `DataReport` as lines of text, readable at 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from library.data.problems import counted
from library.data.report.report import MUCH_CUT, MUCH_ENLARGED, DataReport, Skipped, SubsetReport

WIDTH = 100
BAR = 24  # signs of the longest bar
NUM_NAMES = 10  # of pictures that share a reason


def describe(report: DataReport) -> list[str]:
    """The report in words and tables."""
    sections = [
        [f"plan of {report.source}"],
        _problems(report),
        _subsets(report),
        _skipped(report.skipped),
        _buckets(report),
        _crops(report),
        _lengths(report),
        _steps(report),
        _caches(report),
        _notes(report),
    ]
    lines = [line for section in sections if section for line in (*section, "")]
    return lines[:-1]


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows under their titles, two blanks between the columns; numbers stand at the right of theirs."""
    cells = [list(titles), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    is_number = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(titles))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, is_number, strict=True)
        ]
        lines.append(f"  {'  '.join(parts)}".rstrip())
    return lines


def bytes_in_words(number: int) -> str:
    """For instance "1.5 GB"; a kB is 1000 bytes."""
    amount, units = float(number), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while amount >= 999.5 and unit != "TB":
        amount, unit = amount / 1000, next(units)
    return f"{amount:.0f} {unit}" if amount >= 99.5 or unit == "bytes" else f"{amount:.3g} {unit}"


def _problems(report: DataReport) -> list[str]:
    problems = report.findings.problems
    return [f"{counted(len(problems), 'problem').upper()}", *_wrapped(problems)] if problems else []


def _subsets(report: DataReport) -> list[str]:
    subsets = report.subsets
    optional = {
        "masks": [subset.masks for subset in subsets],
        "validation": [subset.validation for subset in subsets],
        "not used": [subset.skipped for subset in subsets],
    }
    extra = {title: numbers for title, numbers in optional.items() if any(numbers)}
    titles = ["set", "pictures", "repeats", "samples", *extra, "captions"]
    rows = [
        [
            subset.place,
            subset.pictures,
            _range(subset.repeats),
            subset.samples,
            *(numbers[index] for numbers in extra.values()),
            _sources(subset.captions),
        ]
        for index, subset in enumerate(subsets)
    ]
    names = [f"  {subset.place}  {_origin(subset)}" for subset in subsets]
    return ["SUBSETS", *names, "", *table(titles, rows)]


def _range(repeats: tuple[int, int]) -> int | str:
    low, high = repeats
    return low if low == high else f"{low} to {high}"


def _sources(captions: Mapping[str, int]) -> str:
    names = {"file": ("file", "files")}
    return ", ".join(f"{n:,} {names.get(name, (name, name))[n != 1]}" for name, n in captions.items()) or "-"


def _origin(subset: SubsetReport) -> str:
    return f"{subset.source} (regularisation)" if subset.is_reg else subset.source


def _skipped(groups: Sequence[Skipped]) -> list[str]:
    if not groups:
        return []
    lines = [f"NOT USED: {counted(sum(len(group.entries) for group in groups), 'file')}"]
    for group in groups:
        lines.append(f"  {len(group.entries):,}: {group.reason}")
        lines += (f"     {line}" for line in group.lines[:NUM_NAMES])
        if len(group.entries) > NUM_NAMES:
            lines.append(f"     and {len(group.entries) - NUM_NAMES:,} more; the preview page lists all")
    return lines


def _buckets(report: DataReport) -> list[str]:
    if not report.buckets:
        return []
    most = max(bucket.samples for bucket in report.buckets)
    rows = [
        [b.dataset, str(b.size), b.pictures, b.samples, b.batches, "#" * max(1, round(BAR * b.samples / most))]
        for b in report.buckets
    ]
    return ["BUCKETS", *table(["dataset", "size", "pictures", "samples", "batches", ""], rows)]


def _crops(report: DataReport) -> list[str]:
    crops = report.crops
    if crops is None:
        return []
    lines = ["CROPS", f"  {crops.mean_loss:.1%} of the area is cut away, on average"]
    if crops.num_much_cut:
        lines.append(f"  {counted(crops.num_much_cut, 'picture')} losing more than {MUCH_CUT:.0%}:")
        lines += _listed([(path, f"{loss:.0%}") for path, loss in crops.worst], crops.num_much_cut)
    if crops.num_enlarged:
        lines.append(f"  {counted(crops.num_enlarged, 'picture')} smaller than needed, so enlarged")
    if crops.num_much_enlarged:
        lines.append(f"  {counted(crops.num_much_enlarged, 'picture')} enlarged more than {MUCH_ENLARGED:g} times:")
        lines += _listed([(path, f"{factor:.1f} x") for path, factor in crops.most_enlarged], crops.num_much_enlarged)
    return lines


def _listed(values: Sequence[tuple[Path, str]], number: int) -> Iterator[str]:
    width = max(len(value) for _, value in values)
    yield from (f"     {value:>{width}}  {path}" for path, value in values)
    if number > len(values):
        yield f"     and {number - len(values):,} more"


def _lengths(report: DataReport) -> list[str]:
    if not report.lengths:
        return ["CAPTION LENGTHS", *_wrapped([report.length_note])] if report.length_note else []
    titles = ["encoder", "reads", "median", "longest", "pictures cut", "longest caption"]
    rows = [
        [each.encoder, each.limit, round(each.median), each.longest, each.num_cut, each.longest_of.name]
        for each in report.lengths
    ]
    lines = ["CAPTION LENGTHS, in tokens with begin and end", *table(titles, rows)]
    if any(each.num_cut for each in report.lengths):
        lines.append("  What is longer than an encoder reads is cut off: it never sees the end of these captions.")
    if report.length_note:
        lines += _wrapped([report.length_note])
    return lines


def _steps(report: DataReport) -> list[str]:
    if report.steps is None:
        return []
    lines = ["STEPS", *_wrapped([report.steps.describe()])]
    if report.num_validation:
        lines.append(f"  {counted(report.num_validation, 'picture')} kept for validation, not trained")
    return lines


def _caches(report: DataReport) -> list[str]:
    if not report.caches:
        return ["CACHES", "  none: pictures and captions are encoded in every step"]
    rows = [
        [cache.what, cache.entries, bytes_in_words(cache.num_bytes), "on disk" if cache.on_disk else "in memory"]
        for cache in report.caches
    ]
    lines = ["CACHES, when complete", *table(["what", "entries", "size", "where"], rows)]
    needed = sum(cache.num_bytes for cache in report.caches if cache.on_disk)
    for folder, free in report.cache_folders.items():
        lines.append(f"  free on the disk of {folder}: {bytes_in_words(free)}")
    if needed > min(report.cache_folders.values(), default=needed):
        lines.append(f"  THE DISK IS TOO SMALL: the files need up to {bytes_in_words(needed)}.")
    return lines


def _notes(report: DataReport) -> list[str]:
    notes = [*report.findings.notes, *report.findings.remarks]
    if report.num_never_decoded:
        were = "was" if report.num_never_decoded == 1 else "were"
        notes.append(
            f"{counted(report.num_never_decoded, 'picture')} {were} never decoded; damage inside shows at the start of "
            "a training or in tools/preview_dataset.py"
        )
    return ["NOTES", *_wrapped(notes)] if notes else []


def _wrapped(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield from textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False)
