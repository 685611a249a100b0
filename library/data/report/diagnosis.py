"""What the doctor finds in a dataset: each kind of finding with its weight, its cases and what can be done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from library.data.files.fixing import Remedy

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Case(NamedTuple):
    """One place where something was found.

    Attributes:
        paths: The files that it is about; none where it is about the data as a whole.
        detail: What there is to say of this one; "" where the finding says it all.
        remedies: What `--fix` does about it.
    """

    paths: tuple[Path, ...] = ()
    detail: str = ""
    remedies: tuple[Remedy, ...] = ()

    def __str__(self) -> str:
        """One line."""
        names = " = ".join(map(str, self.paths))
        return f"{names}: {self.detail}" if names and self.detail else names or self.detail


@dataclass(frozen=True)
class Diagnosis:
    """All cases of one kind.

    Attributes:
        severity: "error" stops a training, "warning" is likely to do harm, "note" is worth knowing.
        code: Stays the same from version to version.
        summary: What is the matter, without full stop.
        advice: What to do, without full stop; "" where nothing has to be done.
        cases: At least one.
    """

    severity: Severity
    code: str
    summary: str
    advice: str
    cases: tuple[Case, ...]

    @property
    def num_mendable(self) -> int:
        """Cases that `--fix` does something about."""
        return sum(bool(case.remedies) for case in self.cases)


@dataclass(frozen=True)
class Checkup:
    """The state of a dataset.

    Attributes:
        source: The dataset file or folder.
        sizes: Resolutions of the datasets, in words.
        num_pictures: That can be decoded, validation included.
        num_validation: Of these, kept for validation.
        diagnoses: The weightiest first.
    """

    source: str
    sizes: str
    num_pictures: int
    num_validation: int
    diagnoses: tuple[Diagnosis, ...]

    def of(self, severity: Severity) -> list[Diagnosis]:
        """The diagnoses of one weight."""
        return [each for each in self.diagnoses if each.severity == severity]

    def number(self, severity: Severity) -> int:
        """Cases of one weight."""
        return sum(len(each.cases) for each in self.of(severity))

    def remedies(self) -> Iterator[Remedy]:
        """All that `--fix` does."""
        for diagnosis in self.diagnoses:
            for case in diagnosis.cases:
                yield from case.remedies

    @property
    def num_mendable(self) -> int:
        """Cases that `--fix` does something about."""
        return sum(each.num_mendable for each in self.diagnoses)


def sorted_diagnoses(found: Sequence[Diagnosis]) -> tuple[Diagnosis, ...]:
    """Those that have cases, the weightiest first."""
    return tuple(sorted(filter(lambda each: each.cases, found), key=lambda each: SEVERITIES.index(each.severity)))
