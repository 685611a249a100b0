"""What a tool has done, told at its end in the same words by all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from library.data.findings import Fault
from library.data.problems import counted, dataset_error
from library.log import get_logger
from library.preparing.shares import Shares

logger = get_logger(__name__)


@dataclass
class Outcome:
    """Counts and faults, collected on the way.

    Attributes:
        written: Files that were made or changed.
        kept: Pictures whose file was there already.
        faults: What is wrong with pictures that were passed over.
        seconds: How long the work took, without loading.
    """

    written: int = 0
    kept: int = 0
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0

    def tell(self, what: str, shares: Shares, *, unit: str = "pictures", if_all_kept: str = "") -> None:
        """Log the counts of all processes, from the first one, and raise what was wrong.

        Args:
            what: What the files hold, for instance "captions".
            shares: All processes have to call it.
            unit: What is counted in a second.
            if_all_kept: What to do where all files were there and nothing was written, without full stop.

        Raises:
            DatasetError: Pictures were passed over. All others are done.
        """
        own = [(self.written, self.kept, tuple(self.faults), self.seconds)]
        rows = [row for rows in shares.gathered(own) for row in rows]
        written, kept = sum(row[0] for row in rows), sum(row[1] for row in rows)
        faults = sorted({fault for row in rows for fault in row[2]})
        seconds = max(row[3] for row in rows)
        speed = f"; {written / seconds:.1f} {unit}/s" if written and seconds else ""
        if shares.is_first:
            passed = f", passed over {counted(len(faults), 'picture')}" if faults else ""
            hint = f"; {if_all_kept}" if if_all_kept and kept and not written and not faults else ""
            logger.info("%s: wrote %d, kept %d that were there%s%s%s", what, written, kept, passed, speed, hint)
        raise_faults(faults)


def raise_faults(faults: Iterable[Fault]) -> None:
    """Raise one error about all pictures that could not be used; nothing where there are none.

    Raises:
        DatasetError: With each in a line of its own.
    """
    found = list(faults)
    lines = list(dict.fromkeys(map(str, found)))
    if lines:
        number = len({fault.picture for fault in found})  # one line may be about several
        what = "" if number == len(lines) else f"faults, for which {number} "
        raise dataset_error("everything else is done", lines, f"{what}pictures were passed over")
