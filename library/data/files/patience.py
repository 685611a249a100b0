"""Reading again what a network drive failed to give: hiccups of a drive shall not end a run of hours.

Nor shall they make a fault of a picture, for which it would be left out or moved.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from library.data.files.file_threads import map_files
from library.log import get_logger

logger = get_logger(__name__)

PAUSES = (0.5, 2.0, 5.0)  # seconds before each further attempt

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "EAGAIN", "EINTR", "EBUSY", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH"),
        *("ENETRESET", "ECONNABORTED", "ECONNRESET", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH"),
    )
    if hasattr(errno, name)
)
_PASSING_ON_WINDOWS = frozenset((53, 54, 59, 64, 121, 1231, 1236))  # network path, name or connection lost, timeout

_File = TypeVar("_File")
_Result = TypeVar("_Result")


def read_patiently(read: Callable[[], _Result], path: Path) -> _Result:
    """Call `read`; if it fails as drives fail for a moment, call it again after growing pauses.

    Args:
        read: Reads a file, from its start each time.
        path: The file, for the log.

    Raises:
        OSError: The last attempt failed, or the fault is none that passes.
    """
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if not may_pass(error):
                raise
            logger.warning("%s cannot be read (%s); trying again in %g s.", path, error.strerror or error, pause)
        time.sleep(pause)
    return read()


def read_all_patiently(
    read: Callable[[_File], _Result],
    files: Sequence[_File],
    *,
    num_threads: int | None = None,
    title: str = "",
) -> list[_Result]:
    """Like `map_files`; the files that fail as drives fail for a moment are read again, all after the same pauses.

    Args:
        read: Reads a file, from its start each time; an OSError is given, not raised.
        files: Files, or what names them.
        num_threads: As for `map_files`.
        title: As for `map_files`.
    """
    results = map_files(read, files, num_threads=num_threads, title=title)
    for pause in PAUSES:
        failed = {number: result for number, result in enumerate(results) if _is_passing(result)}
        if not failed:
            break
        reason = next(iter(failed.values()))
        logger.warning("%d files cannot be read (%s); trying again in %g s.", len(failed), reason, pause)
        time.sleep(pause)
        again = map_files(read, [files[number] for number in failed], num_threads=num_threads)
        for number, result in zip(failed, again, strict=True):
            results[number] = result
    return results


def why_not_its_fault(error: BaseException) -> str | None:
    """Where the drive or its rights keep a file from being read: what to do. None where it may be the file."""
    if isinstance(error, PermissionError):
        return "make it readable"
    return "several attempts failed; look after the drive, then start again" if _is_passing(error) else None


def may_pass(error: OSError) -> bool:
    """Whether a fault may be gone in a moment, as those of networks and busy drives."""
    return error.errno in _PASSING or getattr(error, "winerror", None) in _PASSING_ON_WINDOWS


def _is_passing(result: object) -> bool:
    return isinstance(result, OSError) and may_pass(result)
