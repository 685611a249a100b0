"""Regularisation pictures: as many in an epoch as there are training pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from library.data.findings import Findings, joined
from library.data.problems import first_names
from library.records import ImageRecord


@dataclass(frozen=True)
class Balance:
    """Records with the repeats they are trained with, in their old order, and what was noticed."""

    records: tuple[ImageRecord, ...]
    findings: Findings


def balance_regularisation(records: Sequence[ImageRecord], *, weight: float) -> Balance:
    """Let the regularisation pictures of each dataset occur as often as its training pictures.

    They are taken in order, each with its own repeats, until there are enough; what is left over is not used. Where
    there are too few, all are repeated once more in turn, from the first on.

    Args:
        records: Pictures that are trained on, validation split off.
        weight: Factor on the loss of regularisation pictures.
    """
    changed: dict[int, ImageRecord | None] = {}  # None: not used
    findings = [] if weight == 1 or any(record.is_reg for record in records) else [_no_effect(weight)]
    for dataset in sorted({record.dataset for record in records if record.is_reg}):
        own = [index for index, record in enumerate(records) if record.dataset == dataset]
        wanted = sum(records[index].repeats for index in own if not records[index].is_reg)
        regular = [index for index in own if records[index].is_reg]
        repeats = _share_repeats([records[index].repeats for index in regular], wanted)
        for index, number in zip(regular, repeats, strict=True):
            changed[index] = replace(records[index], repeats=number, loss_weight=weight) if number else None
        findings.append(_notice(dataset, [records[index].path.name for index in regular], repeats))
    kept = (changed.get(index, record) for index, record in enumerate(records))
    return Balance(tuple(record for record in kept if record is not None), joined(findings))


def _no_effect(weight: float) -> Findings:
    note = f"--prior_loss_weight {weight:g} has no effect: no picture is for regularisation (--reg_data_dir, or is_reg)"
    return Findings(notes=(note,))


def _share_repeats(repeats: Sequence[int], wanted: int) -> list[int]:
    """How often each of some pictures is used so that together they occur `wanted` times, or barely more."""
    shares, number = [], 0
    for own in repeats:
        shares.append(own if number < wanted else 0)
        number += shares[-1]
    lacking = max(0, wanted - number)  # then all are used
    more, rest = divmod(lacking, max(1, len(shares)))
    return [share + more + (place < rest) if share else 0 for place, share in enumerate(shares)]


def _notice(dataset: int, names: Sequence[str], repeats: Sequence[int]) -> Findings:
    place = f"dataset {dataset + 1}"
    unused = [name for name, number in zip(names, repeats, strict=True) if not number]
    if len(unused) == len(names):
        return Findings(
            problems=(
                f"{place} has regularisation pictures ({len(names)}) but no training pictures that can be used; "
                "add a subset without is_reg",
            )
        )
    if not unused:
        return Findings()
    return Findings(
        notes=(
            f"{place}: regularisation pictures that are not used, as there are fewer training pictures: "
            f"{len(unused)} of {len(names)} ({first_names(unused)})",
        )
    )
