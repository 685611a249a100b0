"""The numbers of a run in a file, for whoever compares runs: losses, validation losses, saved files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from library.errors import CheckpointError
from library.tensorfile import write_bytes

NUMBERS = "numbers.json"
"""What names of such files end in."""


@dataclass(frozen=True)
class RunNumbers:
    """What a run has come to.

    Attributes:
        steps: Optimizer steps done.
        max_steps: Steps that were planned.
        losses: Mean loss of every step; NaN where one was skipped.
        validation: (step, loss) of each validation.
        saved: (path, step) of each model file, in the order of saving.
    """

    steps: int
    max_steps: int
    losses: tuple[float, ...]
    validation: tuple[tuple[int, float], ...] = ()
    saved: tuple[tuple[str, int], ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether all planned steps are done."""
        return self.steps >= self.max_steps


def write_numbers(path: Path, numbers: RunNumbers) -> None:
    """Write them as JSON; what is not finite as null.

    Raises:
        OutputError: It cannot be written; a former file is as it was.
    """
    content = asdict(numbers)
    content["losses"] = [_or_none(loss) for loss in numbers.losses]
    content["validation"] = [(step, _or_none(loss)) for step, loss in numbers.validation]
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def read_numbers(path: Path) -> RunNumbers | None:
    """Read them; None where there is no such file.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return RunNumbers(
            int(content["steps"]),
            int(content["max_steps"]),
            tuple(_or_nan(loss) for loss in content["losses"]),
            tuple((int(step), _or_nan(loss)) for step, loss in content["validation"]),
            tuple((str(file), int(step)) for file, step in content["saved"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no file of a run's numbers ({error}). Remove it.") from None


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
