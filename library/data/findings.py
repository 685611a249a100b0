"""What looking at the data came to, beside the records: faults, things left out, remarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

FaultKind = Literal[
    "unusable",  # for a reason of its own, which the problem says
    "broken",  # the header or decoding says that the picture's bytes are wrong
    "too-large",
    "missing-caption",
    "empty-caption",
    "encoding",
    "shared-caption",
    "mask",
    "orphan-mask",
    "type",
    "filter",
]


class Fault(NamedTuple):
    """Why one picture cannot be used, or is not.

    Attributes:
        path: The file that is wrong: the picture, its caption file or its mask.
        problem: What is wrong and what to do, to follow the path; no full stop.
        image: The training picture that is affected, where that is another file.
        kind: What sort of reason it is, for whoever counts or mends; words are for people.
    """

    path: Path
    problem: str
    image: Path | None = None
    kind: FaultKind = "unusable"

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"

    @property
    def picture(self) -> Path:
        """The training picture that cannot be used."""
        return self.image or self.path


@dataclass(frozen=True)
class Findings:
    """All that was noticed, for the one who decides about it.

    Attributes:
        problems: Of folders, metadata files and the like; always errors. Each starts with the place it is about and
            has no full stop.
        faults: Of single pictures; `--on_bad_file` decides about them.
        left_out: Pictures and files that are not used although nothing is broken: types that cannot be read, and
            what filters such as min_image_size keep out.
        notes: Lines for the log, warnings: text without full stop.
        remarks: Likewise, as information.
    """

    problems: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    left_out: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        """Both, what occurs in both once."""
        return joined((self, other))


def joined(findings: Iterable[Findings]) -> Findings:
    """All of several, what occurs more than once only once."""
    parts = tuple(findings)

    def distinct(name: str) -> tuple:  # type: ignore[type-arg]
        return tuple(dict.fromkeys(item for part in parts for item in getattr(part, name)))

    return Findings(
        distinct("problems"), distinct("faults"), distinct("left_out"), distinct("notes"), distinct("remarks")
    )
