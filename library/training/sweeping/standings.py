"""What the trainings of a sweep have come to, and which of them is best."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from library.tensorfile import write_bytes
from library.training.sweeping.variation_files import VariationFiles
from library.training.watching.numbers import RunNumbers, read_numbers
from library.training.watching.summary import SavedFile, best_save


@dataclass(frozen=True)
class Standing:
    """One of the trainings.

    Attributes:
        name: Of its variation.
        folder: Of its files.
        differences: {option or key: value} that its variation says.
        numbers: What it has come to; None where it has not begun, or could not.
        problem: Why it could not go on; empty where it could.
    """

    name: str
    folder: Path
    differences: dict[str, str] = field(default_factory=dict)
    numbers: RunNumbers | None = None
    problem: str = ""

    @property
    def best(self) -> tuple[float, int, str] | None:
        """The lowest validation loss near a saved file, its step, and the file; without a file the lowest of all. None
        without any finite one."""
        if self.numbers is None:
            return None
        known = [point for point in self.numbers.validation if math.isfinite(point[1])]
        saved = [SavedFile(Path(file), step) for file, step in self.numbers.saved if Path(file).exists()]
        found = best_save(saved, known)
        if found is not None:
            return found.loss, found.step, str(found.file.path)
        lowest = min(known, key=lambda point: (point[1], point[0]), default=None)
        return None if lowest is None else (lowest[1], lowest[0], "")

    @property
    def state(self) -> str:
        """In a word or a sentence."""
        if self.problem:
            return f"failed: {self.problem}"
        if self.numbers is None:
            return "not begun"
        done = f"{self.numbers.steps} of {self.numbers.max_steps} steps"
        return "finished" if self.numbers.is_finished else f"stopped after {done}"

    @property
    def sheet(self) -> Path | None:
        """Its contact sheet of sample pictures, if there is one."""
        path = self.folder / "sample" / f"{self.folder.name}_contact_sheet.png"
        return path if path.exists() else None


def standing_of(files: VariationFiles, problem: str = "") -> Standing:
    """What a training has come to, from the files that it has written.

    Raises:
        CheckpointError: They are damaged.
    """
    variation = files.variation
    numbers = read_numbers(files.numbers_path)
    return Standing(variation.name, files.folder, variation.differences(), numbers, problem)


def ranked(standings: Sequence[Standing]) -> list[Standing]:
    """The lowest validation loss first; those without one last, in their order."""
    return sorted(standings, key=lambda standing: standing.best[0] if standing.best else math.inf)


def write_standings(path: Path, standings: Sequence[Standing]) -> None:
    """Write the ranking as JSON.

    Raises:
        OutputError: It cannot be written.
    """
    rows = []
    for rank, standing in enumerate(ranked(standings), 1):
        loss, step, file = standing.best or (None, None, "")
        rows.append(
            {
                "rank": rank if standing.best else None,
                "name": standing.name,
                "folder": standing.folder.as_posix(),
                "differences": standing.differences,
                "state": standing.state,
                "validation_loss": loss,
                "step": step,
                "file": Path(file).as_posix() if file else None,
            }
        )
    write_bytes(path, (json.dumps({"variations": rows}, indent=1, ensure_ascii=False) + "\n").encode())
