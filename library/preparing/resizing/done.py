"""What was done about each picture, and how all processes' work is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from library.data.findings import Fault
from library.data.problems import counted, first_names
from library.log import get_logger
from library.preparing.shares import Shares

logger = get_logger(__name__)


@dataclass
class Done:
    """What was done about one picture.

    Attributes:
        picture: It.
        written: Results that were written.
        kept: Results that were there.
        other_sizes: Names of those that have another size than would be written now, or are no pictures.
        copied: Captions and other files that were copied.
        left: Those that were there.
        faults: What could not be done.
        is_png_for_alpha: PNG was written because it can be transparent.
        has_lost_exif: Its EXIF could not be taken over.
    """

    picture: Path
    written: int = 0
    kept: int = 0
    other_sizes: list[str] = field(default_factory=list)
    copied: int = 0
    left: int = 0
    faults: list[Fault] = field(default_factory=list)
    is_png_for_alpha: bool = False
    has_lost_exif: bool = False


def tell_details(own: Sequence[Done], shares: Shares) -> None:
    """Log what the counts of files do not say. All processes have to call it; the first one tells.

    Args:
        own: Of this process.
        shares: Which of the processes this is.
    """
    done = [one for part in shares.gathered(list(own)) for one in part]
    if shares.is_first:
        _tell(sorted(done, key=lambda one: one.picture))


def _tell(done: Iterable[Done]) -> None:
    done = list(done)
    copied, left = sum(one.copied for one in done), sum(one.left for one in done)
    if copied or left:
        logger.info("captions and other files: copied %d, kept %d that were there", copied, left)
    if number := sum(one.is_png_for_alpha for one in done):
        logger.info("%s can be transparent and became PNG: JPEG cannot be", counted(number, "picture"))
    if other := [name for one in done for name in one.other_sizes]:
        logger.warning(
            "kept %s of another size than these options ask for (--overwrite writes them anew): %s",
            *(counted(len(other), "result"), first_names(other)),
        )
    if lost := [one.picture.name for one in done if one.has_lost_exif]:
        logger.warning(
            "the EXIF of %s is damaged or too long for a JPEG and was left out: %s",
            *(counted(len(lost), "picture"), first_names(lost)),
        )
