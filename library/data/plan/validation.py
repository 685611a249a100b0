"""Which pictures are kept for validation.

Whether a picture is one of them depends on its path below image_dir, the share and the seed only: adding or removing a
picture moves no other, and every start of every run chooses the same.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from library.data.config.specs import DatasetSpec
from library.data.findings import Findings
from library.data.problems import counted
from library.records import ImageRecord
from library.rng import stream_seed


@dataclass(frozen=True)
class Split:
    """Pictures to train on, pictures kept for validation (each once), and what was noticed. No file is in both."""

    training: tuple[ImageRecord, ...]
    validation: tuple[ImageRecord, ...]
    findings: Findings


def split_validation(records: Sequence[ImageRecord], specs: Sequence[DatasetSpec]) -> Split:
    """Keep the share of pictures for validation that each subset says; regularisation pictures never.

    A file that is kept in one dataset is trained on in none.
    """
    kept = [is_validation(record, specs) for record in records]
    held_out = {_real_path(record.path) for record, is_kept in zip(records, kept, strict=True) if is_kept}
    training = tuple(
        record
        for record, is_kept in zip(records, kept, strict=True)
        if not is_kept and not (held_out and _real_path(record.path) in held_out)
    )
    validation = tuple(replace(record, repeats=1) for record, is_kept in zip(records, kept, strict=True) if is_kept)
    return Split(training, validation, _notice(records, training, validation, specs))


def is_validation(record: ImageRecord, specs: Sequence[DatasetSpec]) -> bool:
    """Whether a picture's name falls into the share of its subset that is kept for validation."""
    spec = specs[record.dataset]
    subset = spec.subsets[record.subset]
    share = subset.validation_split
    if share <= 0 or record.is_reg:
        return False
    return stream_seed(spec.validation_seed or 0, "validation", subset.name_of(record.path)) < share * 2**63


def _real_path(path: Path) -> str:
    return os.path.realpath(path)


def _notice(
    records: Sequence[ImageRecord],
    training: Sequence[ImageRecord],
    validation: Sequence[ImageRecord],
    specs: Sequence[DatasetSpec],
) -> Findings:
    problems, notes = [], []
    if validation and all(record.is_reg for record in training):
        problems.append(
            f"validation_split keeps {counted(len(validation), 'picture')} for validation and leaves none to train on; "
            "lower it, or add a subset without it"
        )
    numbers = Counter((record.dataset, record.subset) for record in records if not record.is_reg)
    chosen = {(record.dataset, record.subset) for record in validation}
    for (dataset, subset), number in sorted(numbers.items()):
        share = specs[dataset].subsets[subset].validation_split
        if share > 0 and (dataset, subset) not in chosen:
            notes.append(
                f"dataset {dataset + 1}, subset {subset + 1}: validation_split {share:g} keeps none of "
                f"{counted(number, 'picture')}; raise it, or try another validation_seed"
            )
    return Findings(problems=tuple(problems), notes=tuple(notes))
